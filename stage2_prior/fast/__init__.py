"""Clever code, each file optional: a plainer way gives the same numbers, and a test holds the two together."""
