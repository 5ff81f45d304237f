"""OpenVINO IR, by NNCF."""

from enginehouse.optimize.toolchains.openvino.toolchain import TOOLCHAIN as TOOLCHAIN
