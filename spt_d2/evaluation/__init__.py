"""Evaluators that work beside Detectron2's own."""

from spt_d2.evaluation.multi_label_evaluator import MultiLabelEvaluator
from spt_d2.evaluation.selection_evaluator import SelectionEvaluator, selection_summary

__all__ = ["MultiLabelEvaluator", "SelectionEvaluator", "selection_summary"]
