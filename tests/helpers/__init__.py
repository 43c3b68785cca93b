"""What several tests share; each module says what."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
