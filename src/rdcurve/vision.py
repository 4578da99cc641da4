"""torchvision, also beside a CPU-only torch. Import it from here and nowhere else.

torchvision's compiled extension is built for CUDA and does not load beside a CPU build of torch; `import torchvision`
then stops at "operator torchvision::nms does not exist". Its data sets, transforms, models and utilities are Python and
need none of the extension, so declaring the two operators that it names is enough. `ops.nms` and `io` do not work then.
Where torchvision's own extension loads, nothing is declared.
"""

from __future__ import annotations

import torch

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    import sys

    for _name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[_name]  # what the failed import left behind
    _library = torch.library.Library("torchvision", "DEF")  # the declarations live as long as this object
    for _operator in ("nms", "qnms"):
        _library.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

__all__ = ["torchvision"]
