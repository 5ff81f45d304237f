"""What optimize/toolchains/openvino.py is made of."""
