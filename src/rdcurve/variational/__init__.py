"""Upper bounds on the rate-distortion curve by Gaussian channels: the paper's baseline (section 6.5)."""
