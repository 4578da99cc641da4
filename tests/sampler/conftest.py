"""`RDCURVE_TEST_NOISE=3 pytest tests/sampler`: the same tests with other random numbers (R9).

Fixed seeds make every run alike; that a statistical test is no lucky draw is seen only by other ones. The value enters
the key of all noise of the sampler, and of the draws from priors, mixtures and distortions.
"""

import os

import pytest

from rdcurve.sampler import bdmc, modes, noise, prior

VALUE = os.environ.get("RDCURVE_TEST_NOISE", "")


@pytest.fixture(autouse=True, scope="session")
def _other_noise():
    if not VALUE:
        yield
        return
    key = noise.seed_of(VALUE)
    philox, seed_of = noise.philox, noise.seed_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            noise, "philox", lambda counter, k: philox(counter, (k[0] ^ (key & 0xFFFFFFFF), k[1] ^ (key >> 32)))
        )
        for module in (bdmc, modes, prior):
            patch.setattr(module, "seed_of", lambda *parts: seed_of(VALUE, *parts))
        yield
