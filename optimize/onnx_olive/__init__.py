"""What the ONNX toolchain is made of: Olive passes around the GenAI model builder."""
