"""MLX's folders: quantized by mlx-lm. Its engine imports `library`."""

from enginehouse.optimize.toolchains.mlx.toolchain import TOOLCHAIN as TOOLCHAIN
