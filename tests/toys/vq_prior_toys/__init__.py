"""Toys: each is written against the contracts of vq-prior alone, and found by an entry point of this package."""
