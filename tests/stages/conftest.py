"""Fixtures of the tests of stages."""

from helpers.diffusion_stage import params as params
from helpers.shipped import shipped as shipped
