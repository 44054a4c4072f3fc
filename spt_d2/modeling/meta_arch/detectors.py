"""
Detectron2's detectors over a backbone that selects.

Their stock versions run the backbone inside ``forward``, where nobody can get at its selections; so each is written
here with the steps in view. Each remains an instance of its stock class, and test-time augmentation accepts it.
"""

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN, RetinaNet
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage

from spt_d2.modeling.meta_arch.supervision import SelectionSupervision


@META_ARCH_REGISTRY.register()
class SelectionGeneralizedRCNN(SelectionSupervision, GeneralizedRCNN):
    """:class:`GeneralizedRCNN` with selection loss and, on request, selections in its outputs."""

    @configurable
    def __init__(self, **kwargs):
        """Args: see :class:`SelectionSupervision` and :class:`GeneralizedRCNN`."""
        super().__init__(**kwargs)

    def forward(self, batched_inputs: list[dict]) -> dict | list[dict]:
        """As :meth:`GeneralizedRCNN.forward`; training inputs carry ``selection_labels`` too."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = _ground_truth(batched_inputs, self.device)
        features, selections, labels = self.select_features(images, batched_inputs)
        if self.proposal_generator is not None:
            proposals, proposal_losses = self.proposal_generator(images, features, targets)
        else:
            proposals, proposal_losses = _given_proposals(batched_inputs, self.device), {}
        _, detector_losses = self.roi_heads(images, features, proposals, targets)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return {**detector_losses, **proposal_losses, **self.selection_losses(selections, labels)}

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        """As :meth:`GeneralizedRCNN.inference`; postprocessed outputs may carry ``selection``."""
        images = self.preprocess_image(batched_inputs)
        features, selections, _ = self.select_features(images, batched_inputs)
        if detected_instances is not None:
            detected = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, detected)
        else:
            if self.proposal_generator is not None:
                proposals, _ = self.proposal_generator(images, features, None)
            else:
                proposals = _given_proposals(batched_inputs, self.device)
            results, _ = self.roi_heads(images, features, proposals, None)
        if not do_postprocess:
            return results
        outputs = self._postprocess(results, batched_inputs, images.image_sizes)
        return self.attach_selections(outputs, selections, images)


@META_ARCH_REGISTRY.register()
class SelectionPanopticFPN(SelectionSupervision, PanopticFPN):
    """:class:`PanopticFPN` with selection loss and, on request, selections in its outputs."""

    @configurable
    def __init__(self, **kwargs):
        """Args: see :class:`SelectionSupervision` and :class:`PanopticFPN`."""
        super().__init__(**kwargs)

    def forward(self, batched_inputs: list[dict]) -> dict | list[dict]:
        """As :meth:`PanopticFPN.forward`; training inputs carry ``selection_labels`` too."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = _ground_truth(batched_inputs, self.device)
        features, selections, labels = self.select_features(images, batched_inputs)
        segments = ImageList.from_tensors(
            [x["sem_seg"].to(self.device) for x in batched_inputs],
            self.backbone.size_divisibility,
            self.sem_seg_head.ignore_value,
            self.backbone.padding_constraints,
        )
        _, segment_losses = self.sem_seg_head(features, segments.tensor)
        proposals, proposal_losses = self.proposal_generator(images, features, targets)
        _, detector_losses = self.roi_heads(images, features, proposals, targets)
        return {**segment_losses, **proposal_losses, **detector_losses, **self.selection_losses(selections, labels)}

    def inference(self, batched_inputs: list[dict], do_postprocess: bool = True):
        """As :meth:`PanopticFPN.inference`; postprocessed outputs may carry ``selection``."""
        images = self.preprocess_image(batched_inputs)
        features, selections, _ = self.select_features(images, batched_inputs)
        segments, _ = self.sem_seg_head(features, None)
        proposals, _ = self.proposal_generator(images, features, None)
        detections, _ = self.roi_heads(images, features, proposals, None)
        if not do_postprocess:
            return detections, segments
        outputs = []
        for segment, detection, given, image_size in zip(segments, detections, batched_inputs, images.image_sizes):
            height, width = given.get("height", image_size[0]), given.get("width", image_size[1])
            segment = sem_seg_postprocess(segment, image_size, height, width)
            detection = detector_postprocess(detection, height, width)
            panoptic = combine_semantic_and_instance_outputs(
                detection,
                segment.argmax(dim=0),
                self.combine_overlap_thresh,
                self.combine_stuff_area_thresh,
                self.combine_instances_score_thresh,
            )
            outputs.append({"sem_seg": segment, "instances": detection, "panoptic_seg": panoptic})
        return self.attach_selections(outputs, selections, images)


@META_ARCH_REGISTRY.register()
class SelectionRetinaNet(SelectionSupervision, RetinaNet):
    """:class:`RetinaNet` with selection loss and, on request, selections in its outputs."""

    @configurable
    def __init__(self, **kwargs):
        """Args: see :class:`SelectionSupervision` and :class:`RetinaNet`."""
        super().__init__(**kwargs)

    def forward(self, batched_inputs: list[dict]) -> dict | list[dict]:
        """As :meth:`RetinaNet.forward`; training inputs carry ``selection_labels`` too."""
        images = self.preprocess_image(batched_inputs)
        features, selections, labels = self.select_features(images, batched_inputs)
        levels = [features[name] for name in self.head_in_features]
        predictions = self.head(levels)
        if self.training:
            targets = _ground_truth(batched_inputs, self.device)
            if targets is None:
                raise ValueError("SelectionRetinaNet expects 'instances' in every training input. Got none.")
            losses = self.forward_training(images, levels, predictions, targets)
            return {**losses, **self.selection_losses(selections, labels)}
        results = self.forward_inference(images, levels, predictions)
        outputs = []
        for result, given, image_size in zip(results, batched_inputs, images.image_sizes):
            height, width = given.get("height", image_size[0]), given.get("width", image_size[1])
            outputs.append({"instances": detector_postprocess(result, height, width)})
        return self.attach_selections(outputs, selections, images)


def _ground_truth(batched_inputs: list[dict], device) -> list[Instances] | None:
    if "instances" not in batched_inputs[0]:
        return None
    return [x["instances"].to(device) for x in batched_inputs]


def _given_proposals(batched_inputs: list[dict], device) -> list[Instances]:
    if "proposals" not in batched_inputs[0]:
        raise ValueError(
            "A model without a proposal generator expects 'proposals' in every input. Got none.\n"
            "HINT: MODEL.LOAD_PROPOSALS and DATASETS.PROPOSAL_FILES_TRAIN / PROPOSAL_FILES_TEST."
        )
    return [x["proposals"].to(device) for x in batched_inputs]
