"""Stage two: which grids of codes are likely."""
