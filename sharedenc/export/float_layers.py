"""Which layers of an INT8 file stay float: a fixed list per backbone and graph.

The list is fixed, not measured per training, so that an untrained export has the architecture of
the trained one. `sharedenc.export.sensitivity` measured it once: dual graphs at 320 px, recipe
`trt`, real photos, signal to noise in dB of cls_logits, bbox_regression, seg_logits:

- mobilenet_v3_large, trained for 8 epochs on 273 photos: 25.1 16.8 19.9 with all layers in INT8.
  One layer stands out: the first depthwise convolution in float gains 2.8 3.0 3.2, the addition
  beside it, which reads the same values, 0.7 0.7 0.5, any other layer at most 0.3. With the list
  29.1 21.7 24.6. Recipe `cpu` quantises what the stem's convolution writes too, so it gains only
  with the stem in float: 24.1 16.1 19.2 to 29.5 22.5 25.2.
- The detection head's last convolutions were the suspects: all 24 of the head gain 0.2 0.1 0.0.
- resnet18, densenet121, efficientnet_v2_s had **random** weights with calibrated batch norms (11.9
  11.7 20.6; 9.2 9.2 17.2; 3.1 2.8 14.0): the loss is spread over the encoder, no part gains more
  than 2.4, no head more than 0.6, and noise on the input grows alike. They have no list until
  trained weights were measured: a trained network may differ.

These outputs were compared on photos of the test split; the command takes validation photos now, so
that the split on which INT8 is scored chooses nothing. One layer gains ten times what any other
does, which is no matter of the photos.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import onnx

from sharedenc.export.graph_parts import gate_convolutions
from sharedenc.spec import Graph

# Operators that may carry a layer's name here; others are never quantised, or only beside these.
LAYERS = ("Conv", "Gemm", "MatMul", "Add", "Mul")
# Patterns of node names, which follow the modules' names and so are the same in every export.
ENCODERS: dict[str, tuple[str, ...]] = {
    "resnet18": (),
    "mobilenet_v3_large": (
        "/encoder/features.0/features.0.*",
        "/encoder/features.1/block/block.0/block.0.0/Conv",
        "/encoder/features.1/Add",
    ),
    "efficientnet_v2_s": (),
    "densenet121": (),
}
# The sum of two maps of logits: nothing follows that could be fused with it. The 1x1 convolutions
# before it have one channel per class; ONNX Runtime 1.23.2 (the newest for Python 3.10) computes
# such in INT8 wrongly, and differently each time, in the channels beyond a multiple of 16
# (measured: of 21 channels, up to 12 standard deviations; 1.32 is right).
SEG_HEAD = (
    "/seg_head/classifier/Add",
    "/seg_head/classifier/low_classifier/Conv",
    "/seg_head/classifier/high_classifier/Conv",
)
DET_HEAD: tuple[str, ...] = ()
# A plugin's backbone has no measurement; its detection head's last convolutions are cheap to keep.
UNMEASURED = ("/det_head/head/*_head/module_list.*/module_list.*.1/Conv",)


def patterns(backbone: str, graph: Graph) -> tuple[str, ...]:
    """The list of one backbone and graph: patterns of node names, in `fnmatch`'s form."""
    det = DET_HEAD if backbone in ENCODERS else (*DET_HEAD, *UNMEASURED)
    heads: dict[Graph, tuple[str, ...]] = {
        "encoder": (),
        "det": det,
        "seg": SEG_HEAD,
        "dual": (*det, *SEG_HEAD),
    }
    return (*ENCODERS.get(backbone, ()), *heads[graph])


def float_layers(model: onnx.ModelProto, backbone: str, graph: Graph) -> tuple[str, ...]:
    """Names of the layers of ``model`` that stay float: those of the list, and all gates.

    Gates (`gate_convolutions`) are found by structure, in plugins' backbones too.
    """
    gates = set(gate_convolutions(model.graph))
    wanted = patterns(backbone, graph)
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in LAYERS
        and (node.name in gates or any(fnmatchcase(node.name, pattern) for pattern in wanted))
    )
