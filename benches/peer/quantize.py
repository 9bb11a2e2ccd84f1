"""Dynamic int8 by ONNX Runtime's own quantiser, as a whole process: the peer of `tinsmith quantize`.

    python quantize.py IN.onnx OUT.onnx
"""
import sys
from onnxruntime.quantization import QuantType, quantize_dynamic

quantize_dynamic(sys.argv[1], sys.argv[2], per_channel=True, weight_type=QuantType.QInt8)
