"""The definitions: every operation in plain PyTorch, on every device and dtype; what the kernels are tested against.

One module an operation, with the name of the operation. Arithmetic and results are float32 (float64 for float64
input), also under autocast; gradients come from autograd and arrive in the inputs' dtype. Nothing here waits for a
value on the device.
"""
