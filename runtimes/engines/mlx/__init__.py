"""MLX by mlx-lm."""

from enginehouse.runtimes.engines.mlx.engine import RUNTIME as RUNTIME
