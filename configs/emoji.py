"""Captioned emoji in three styles."""

from vqd_jax.defaults import defaults


def get_config(variant: str = ""):
    c = defaults()
    c.emoji.people = False
    return c
