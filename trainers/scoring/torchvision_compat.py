"""Makes torchvision importable beside a torch wheel that its compiled operators do not match."""

from __future__ import annotations

import sys

_OPERATORS = (
    "nms",
    "qnms",
)  # those whose schemas torchvision extends in Python while it is imported
_library: list[object] = []  # a torch.library.Library undoes its definitions when it is collected


def import_torchvision() -> None:
    """Import torchvision; call this before anything that imports it, such as torch-fidelity.

    torchvision's wheels are built for one build of torch. Beside another, such as a CPU wheel, its
    operators do not load and the import fails although the parts written in Python would work.
    Then, and only then, the operators are declared without an implementation: using one still
    fails, and nothing here does.
    """
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in _OPERATORS:
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        _library.append(library)
        import torchvision  # noqa: F401
