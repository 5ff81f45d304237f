"""MLX's folders, by mlx-lm."""

from enginehouse.optimize.toolchains.mlx.toolchain import TOOLCHAIN as TOOLCHAIN
