"""Judging codecs, codes, priors and samples: measurements, verdicts, pages, hashes."""
