"""Robust preference optimisation through reward model distillation (Fisch et al., TMLR 2025)."""

__version__ = "0.1.0"
