"""The curve of a decoder of one's own: `rdcurve.measure`."""
