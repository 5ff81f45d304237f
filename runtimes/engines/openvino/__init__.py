"""OpenVINO GenAI."""

from enginehouse.runtimes.engines.openvino.engine import RUNTIME as RUNTIME
