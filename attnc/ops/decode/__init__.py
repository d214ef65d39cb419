"""Prefill and step: what a variant carries from token to token, and the calls that carry it."""
