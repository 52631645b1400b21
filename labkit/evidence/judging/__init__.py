"""Judging: can people tell synthetic scans from real ones? Trials, answers on disk, statistics; no widgets."""
