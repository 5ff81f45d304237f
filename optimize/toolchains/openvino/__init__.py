"""OpenVINO's IR: exported by transformers, compressed by NNCF."""

from enginehouse.optimize.toolchains.openvino.toolchain import TOOLCHAIN as TOOLCHAIN
