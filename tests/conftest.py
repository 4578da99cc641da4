import os

# two busy cores: the threads of several test processes would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"  # no windows

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    import math
    from pathlib import Path

    import numpy as np

    import rdcurve
    from rdcurve.sampler.distortion import SquaredError

    doctest_namespace.update(torch=torch, np=np, math=math, Path=Path, rdcurve=rdcurve, SquaredError=SquaredError)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
