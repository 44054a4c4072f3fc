"""Evaluators that work beside Detectron2's own."""

from spt_d2.evaluation.selection_evaluator import SelectionEvaluator, selection_summary

__all__ = ["SelectionEvaluator", "selection_summary"]
