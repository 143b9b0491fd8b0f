#include "op_cases.h"

#include <string.h>

#define EXACT(op, operands, attributes) {op, operands, attributes, true},
#define ROUND(op, operands, attributes) {op, operands, attributes, false},

/* clang-format off */
static const OpCase cases[] = {
    /* convolution: filters of 1×1, 3×3, 5×5, 7×7, even and rectangular ones; channels around multiples of 16 */
    EXACT("conv2d", "x:f32[N,1,1,1] | weight:f32[1,1,1,1]", "")
    EXACT("conv2d", "x:f32[N,3,7,9] | weight:f32[5,3,3,3] bias:f32[5]", "stride=[2,1], padding=[1,1,1,1]")
    EXACT("conv2d", "x:f32[N,16,5,5] | weight:f32[16,16,1,1] bias:f32[16]", "")
    EXACT("conv2d", "x:f32[N,17,5,7] | weight:f32[33,17,1,1] bias:f32[33]", "")
    EXACT("conv2d", "x:f32[N,32,9,14] | weight:f32[48,32,1,1]", "stride=[2,2]")
    EXACT("conv2d", "x:f32[N,16,14,14] | weight:f32[32,16,3,3] bias:f32[32]", "padding=[1,1,1,1]")
    EXACT("conv2d", "x:f32[N,32,7,7] | weight:f32[32,32,3,3]", "padding=[1,1,1,1]")
    EXACT("conv2d", "x:f32[N,10,5,29] | weight:f32[22,10,3,3] bias:f32[22]", "padding=[1,1,1,1]")
    EXACT("conv2d", "x:f32[N,33,3,1] | weight:f32[17,33,3,3]", "padding=[1,1,1,1]")
    EXACT("conv2d", "x:f32[N,16,1,29] | weight:f32[16,16,3,3]", "padding=[1,1,1,1], stride=[2,2]")
    EXACT("conv2d", "x:f32[N,3,29,14] | weight:f32[16,3,7,7]", "stride=[2,2], padding=[3,3,3,3]")
    EXACT("conv2d", "x:f32[N,1,28,28] | weight:f32[8,1,5,5] bias:f32[8]", "stride=[2,2], padding=[2,2,2,2]")
    EXACT("conv2d", "x:f32[N,16,14,15] | weight:f32[16,16,3,3]", "stride=[2,2], padding=[1,1,1,1]")
    EXACT("conv2d", "x:f32[N,5,9,7] | weight:f32[3,5,2,4] bias:f32[3]", "padding=[0,1,1,2]")
    EXACT("conv2d", "x:f32[N,16,9,7] | weight:f32[16,16,3,1]", "stride=[1,3], padding=[2,0,0,1]")
    EXACT("conv2d", "x:f32[N,4,17,14] | weight:f32[8,4,3,3] bias:f32[8]", "dilation=[2,2], padding=[2,2,2,2]")
    EXACT("conv2d", "x:f32[N,16,14,7] | weight:f32[32,16,3,3]", "dilation=[3,1], padding=[3,1,3,1], stride=[2,1]")
    EXACT("conv2d", "x:f32[N,12,9,10] | weight:f32[18,4,3,3] bias:f32[18]", "groups=3, padding=[1,1,1,1]")
    EXACT("conv2d", "x:f32[N,32,7,7] | weight:f32[32,16,3,3]", "groups=2, padding=[1,1,1,1]")
    EXACT("conv2d", "x:f32[N,22,7,14] | weight:f32[22,1,3,3] bias:f32[22]", "groups=22, padding=[1,1,1,1]")
    EXACT("conv2d", "x:f32[N,16,14,29] | weight:f32[16,1,3,3]", "groups=16, padding=[1,1,1,1], stride=[2,2]")
    EXACT("conv2d", "x:f32[N,32,7,5] | weight:f32[32,1,5,5] bias:f32[32]", "groups=32, padding=[2,2,2,2]")
    EXACT("conv2d", "x:f32[N,10,9,7] | weight:f32[20,1,3,3]", "groups=10, padding=[1,1,1,1]")
    EXACT("conv2d", "x:f32[N,4,7,5] | weight:f32[5,4,3,3] bias:f32[5]", "padding_mode=reflect, padding=[1,1,1,1]")
    EXACT("conv2d", "x:f32[N,4,7,5] | weight:f32[5,4,5,5]", "padding_mode=replicate, padding=[2,2,2,2], stride=[1,2]")
    EXACT("conv2d", "x:f32[N,3,12,10] | weight:f32[16,3,3,3]", "")
    EXACT("conv2d", "x:f32[2,3,5,7] | weight:f32[10,3,3,3] bias:f32[10]", "")
    EXACT("conv2d", "x:f32[N,64,3,3] | weight:f32[80,64,3,3]", "padding=[1,1,1,1]")
    EXACT("conv_transpose2d", "x:f32[N,6,5,9] | weight:f32[6,4,3,3] bias:f32[4]",
          "stride=[2,2], padding=[1,1,1,1], output_padding=[1,1]")
    EXACT("conv_transpose2d", "x:f32[N,16,5,7] | weight:f32[16,17,2,2]", "stride=[2,2]")
    EXACT("conv_transpose2d", "x:f32[N,4,7,1] | weight:f32[4,3,3,2] bias:f32[6]", "groups=2, stride=[1,3], dilation=[2,1]")
    EXACT("conv_transpose2d", "x:f32[N,3,5,5] | weight:f32[3,10,4,4] bias:f32[10]", "stride=[2,2], padding=[1,0,2,1]")

    /* matrix products */
    EXACT("linear", "x:f32[N,1] | weight:f32[1,1]", "")
    EXACT("linear", "x:f32[N,35] | weight:f32[19,35] bias:f32[19]", "")
    EXACT("linear", "x:f32[N,64] | weight:f32[32,64]", "")
    EXACT("linear", "x:f32[N,17] | weight:f32[33,17] bias:f32[33]", "")
    EXACT("linear", "x:f32[N,129] | weight:f32[10,129] bias:f32[10]", "")
    EXACT("linear", "x:f32[5,22] | weight:f32[7,22]", "")
    EXACT("linear", "x:f32[N,5,10] | weight:f32[17,10] bias:f32[17]", "")
    EXACT("matmul", "x:f32[N,17] y0:f32[17,33]", "")
    EXACT("matmul", "x:f32[N,10] | w:f32[7,10]", "transpose=true")
    EXACT("matmul", "x:f32[5,7] y0:f32[7,14]", "")
    EXACT("matmul", "x:f32[N,3,5,7] y0:f32[N,3,7,10]", "")
    EXACT("matmul", "x:f32[N,5,7] y0:f32[N,22,7]", "transpose=true")
    EXACT("matmul", "x:f32[N,1,5,7] | w:f32[3,7,10]", "")

    /* normalisation */
    ROUND("batch_norm", "x:f32[N,10,5,7] | weight:f32[10] bias:f32[10] mean:f32[10] variance:f32[10]", "")
    ROUND("batch_norm", "x:f32[N,17,7,1] | weight:f32[17] bias:f32[17] mean:f32[17] variance:f32[17]", "eps=0.001")
    ROUND("batch_norm", "x:f32[N,33] | weight:f32[33] bias:f32[33] mean:f32[33] variance:f32[33]", "")
    ROUND("batch_norm", "x:f32[N,16,14,5] | weight:f32[16] bias:f32[16] mean:f32[16] variance:f32[16]", "training=true")
    ROUND("batch_norm", "x:f32[5,22] | weight:f32[22] bias:f32[22] mean:f32[22] variance:f32[22]", "training=true")
    ROUND("normalize", "x:f32[N,3,5,7]", "mean=[0.485,0.456,0.406], std=[0.229,0.224,0.225]")
    ROUND("normalize", "x:f32[N,1,14,29]", "mean=[0.25], std=[0.5]")
    ROUND("batch_stats", "x:f32[N,10,5,7]", "")
    ROUND("batch_stats", "x:f32[7,17]", "")
    ROUND("plane_moments", "x:f32[N,10,5,7]", "")
    ROUND("plane_moments", "x:f32[N,17,7,5]", "parts=4")
    ROUND("plane_moments", "x:f32[5,3,9,2]", "parts=3")
    ROUND("bn_update", "running:f32[10] stats:f32[2,10] x:f32[N,10,5,7]", "dim=0")
    ROUND("bn_update", "running:f32[17] stats:f32[2,17] x:f32[5,17]", "momentum=0.25")
    ROUND("bn_update", "running:f32[10] stats:f32[2,10] x:f32[N,10,5,7] loss:f32[]", "dim=1")

    /* ends of training steps; "positive" stands for a state whose moments may be squares, and for rates */
    ROUND("sgd_step", "x:f32[2,37] g:f32[37] hyper:f32[1,16] loss:f32[]", "segments=[37], decayed=[20]")
    ROUND("sgd_step", "x:f32[3,40] g:f32[40] hyper:f32[2,16] loss:f32[]",
          "segments=[24,40], decayed=[0,33], nesterov=true, accumulate=true")
    ROUND("sgd_step", "x:f32[2,9000] g:f32[9000] hyper:f32[3,16] loss:f32[] positive1:f32[]",
          "segments=[0,5000,9000], decayed=[0,4999,5000]")
    ROUND("adam_step", "positive0:f32[3,37] g:f32[37] hyper:f32[1,16] loss:f32[]", "segments=[37], decayed=[37]")
    ROUND("adam_step", "positive0:f32[4,48] g:f32[48] hyper:f32[2,16] loss:f32[] positive2:f32[]",
          "segments=[16,48], decayed=[0,32], accumulate=true")
    ROUND("sum_squares", "x:f32[9001]", "")
    ROUND("sum_squares", "x:f32[5]", "")
    EXACT("pack", "x:f32[3,5] y0:f32[17] y1:f32[] y2:f32[2,1,3,3]", "")
    ROUND("dropout", "x:f32[N,16,5,7] rng:i64[2]", "p=0.25, stream=3")
    ROUND("dropout", "x:f32[N] rng:i64[2]", "p=0.5")
    EXACT("dropout", "x:f32[5,17] rng:i64[2]", "p=1")

    /* pooling */
    EXACT("max_pool2d", "x:f32[N,6,13,14]", "kernel=[3,3], stride=[2,2], padding=[1,1,1,1]")
    EXACT("max_pool2d", "x:f32[N,16,7,5]", "kernel=[2,2], stride=[2,2]")
    EXACT("max_pool2d", "x:f32[N,17,7,14]", "kernel=[2,3], stride=[2,2], ceil_mode=true")
    EXACT("max_pool2d", "x:f32[N,3,9,7]", "kernel=[3,2], dilation=[2,3], padding=[2,1,1,2]")
    EXACT("max_pool2d", "x:f32[N,16,1,29]", "kernel=[1,3], stride=[1,2], padding=[0,1,0,1], ceil_mode=true")
    EXACT("avg_pool2d", "x:f32[N,16,8,10]", "kernel=[2,2], stride=[2,2]")
    ROUND("avg_pool2d", "x:f32[N,5,9,12]", "kernel=[3,3], stride=[2,2], padding=[1,1,1,1]")
    ROUND("avg_pool2d", "x:f32[N,17,9,7]", "kernel=[3,3], stride=[2,2], padding=[1,1,1,1], count_include_pad=false")
    ROUND("avg_pool2d", "x:f32[N,10,7,5]", "kernel=[3,2], stride=[3,2], padding=[1,1,1,1], ceil_mode=true")
    ROUND("avg_pool2d", "x:f32[N,1,5,29]",
          "kernel=[2,3], stride=[2,3], padding=[1,0,0,1], ceil_mode=true, count_include_pad=false")
    ROUND("adaptive_avg_pool2d", "x:f32[N,7,11,13]", "")
    ROUND("adaptive_avg_pool2d", "x:f32[N,16,7,7]", "")
    ROUND("adaptive_avg_pool2d", "x:f32[N,17,11,5]", "output=[3,2]")
    ROUND("adaptive_avg_pool2d", "x:f32[N,3,2,3]", "output=[5,7]")
    EXACT("adaptive_max_pool2d", "x:f32[N,7,11,13]", "")
    EXACT("adaptive_max_pool2d", "x:f32[N,33,7,5]", "output=[3,4]")
    ROUND("adaptive_concat_pool2d", "x:f32[N,7,11,13]", "")
    ROUND("adaptive_concat_pool2d", "x:f32[N,16,5,7]", "output=[2,3]")

    /* resampling and padding */
    EXACT("upsample", "x:f32[N,3,5,7]", "scale=[2,3]")
    EXACT("upsample", "x:f32[N,16,7,5]", "size=[14,3]")
    EXACT("upsample", "x:f32[N,16,5,5]", "scale=[2,2], mode=bilinear")
    ROUND("upsample", "x:f32[N,17,5,1]", "size=[7,14], mode=bilinear")
    ROUND("upsample", "x:f32[N,3,7,5]", "size=[1,29], mode=bilinear, align_corners=true")
    ROUND("upsample", "x:f32[N,3,7,14]", "size=[5,5], mode=bilinear")
    ROUND("grid_sample", "x:f32[N,3,12,9] theta:f32[N,2,3]", "")
    ROUND("grid_sample", "x:f32[N,3,7,7] theta:f32[N,2,3]", "padding_mode=border, size=[5,14]")
    ROUND("grid_sample", "x:f32[N,1,7,5] theta:f32[N,2,3]", "padding_mode=reflection, align_corners=true")
    ROUND("grid_sample", "x:f32[N,3,9,5] theta:f32[N,2,3]", "padding_mode=reflection, size=[1,7]")
    EXACT("pad", "x:f32[N,3,5,7]", "padding=[1,2,3,0]")
    EXACT("pad", "x:f32[N,16,5,7]", "padding=[1,1,1,1], value=2")
    EXACT("pad", "x:f32[N,17,5,7]", "padding=[2,4,1,6], padding_mode=reflect")
    EXACT("pad", "x:f32[N,3,1,5]", "padding=[2,0,1,7], padding_mode=replicate")

    /* shape */
    EXACT("flatten", "x:f32[N,17,5,7]", "")
    EXACT("flatten", "x:f32[N,16,1,1]", "")
    EXACT("flatten", "x:f32[N,3,5,7]", "start_dim=-2")
    EXACT("flatten", "x:f32[2,3,5]", "start_dim=0")
    EXACT("reshape", "x:f32[N,6,5,7]", "shape=[N,10,21]")
    EXACT("reshape", "x:f32[N,24]", "shape=[N,2,-1,4]")
    EXACT("permute", "x:f32[N,3,5,7]", "dims=[0,2,3,1]")
    EXACT("permute", "x:f32[N,16,5,7]", "dims=[0,-1,1,2]")
    EXACT("permute", "x:f32[5,7]", "dims=[1,0]")
    EXACT("concat", "x:f32[N,3,5,7] y0:f32[N,10,5,7]", "")
    EXACT("concat", "x:f32[N,16,5,7] y0:f32[N,32,5,7] z:f32[N,16,5,7]", "")
    EXACT("concat", "x:f32[N,5,7] y0:f32[N,5,1]", "dim=-1")
    EXACT("concat", "x:f32[N,17] y0:f32[N,1] z:f32[N,22]", "")
    EXACT("concat", "x:f32[N,10,1,1]", "")
    EXACT("identity", "x:f32[N,17,5,7]", "")
    EXACT("dropout", "x:f32[N,16,5,7]", "p=0.25")
    EXACT("convert", "x:f32[N,10,5,7]", "")

    /* reductions */
    ROUND("softmax", "x:f32[N,19]", "")
    ROUND("softmax", "x:f32[N,5,7,3]", "dim=-2")
    ROUND("softmax", "x:f32[N,1]", "")
    ROUND("log_softmax", "x:f32[N,10]", "")
    ROUND("log_softmax", "x:f32[N,17,5,7]", "")
    ROUND("mean", "x:f32[N,17,5,7]", "")
    ROUND("mean", "x:f32[N,16,5,7]", "dims=[2,3]")
    ROUND("mean", "x:f32[N,3,5,7]", "dims=[-1,1], keep_dims=true")
    ROUND("mean", "x:f32[N,10]", "dims=[0]")
    EXACT("sum", "x:f32[N,17,5,7]", "")
    EXACT("sum", "x:f32[N,10,5]", "dims=[0,1,2]")
    EXACT("sum", "x:f32[N,10,5,7]", "dims=[0,2,3]")
    EXACT("max", "x:f32[N,22,5,7]", "")
    EXACT("max", "x:f32[N,3,29]", "dims=[1], keep_dims=true")
    EXACT("argmax", "x:f32[N,10]", "")
    EXACT("argmax", "x:f32[N,5,17]", "dim=-1, keep_dims=true")
    EXACT("argmax", "x:f32[N,5,7,3]", "")
    ROUND("stats_partial", "x:f32[N,17,5,7]", "low=-1, high=1")
    ROUND("stats_partial", "x:f32[N,16,14,7]", "bins=17, low=-3, high=1.25, threshold=-0.5")
    ROUND("stats_partial", "x:f32[N,48,70,31]", "")
    ROUND("stats_partial", "x:f32[N,20000]", "bins=254, low=-1")
    ROUND("stats_partial", "x:f32[N]", "bins=1")
    ROUND("stats_partial", "x:f32[5,7,3]", "low=-0.3, high=0.3, bins=3")
    ROUND("stats_partial", "x:f32[]", "")
    ROUND("stats_final", "positive:f32[N,3,45]", "")
    ROUND("stats_final", "positive:f32[2,1,6]", "")

    /* losses */
    ROUND("cross_entropy", "x:f32[N,10] target:i64[N]", "")
    ROUND("cross_entropy", "x:f32[N,37] target:i64[N]", "reduction=sum")
    ROUND("cross_entropy", "x:f32[N,17] target:i64[N]", "reduction=none")
    ROUND("mse", "x:f32[N,3] target:f32[N,3]", "")
    ROUND("mse", "x:f32[N,3,5,7] target:f32[N,3,5,7]", "reduction=sum")
    ROUND("mse", "x:f32[N,17] target:f32[N,17]", "reduction=none")
    ROUND("bce_with_logits", "x:f32[N] target:f32[N]", "")
    ROUND("bce_with_logits", "x:f32[N,10] target:f32[N,10]", "reduction=sum")
    ROUND("bce_with_logits", "x:f32[N,10] target:f32[N,10]", "reduction=none")

    /* made by differentiation; "dy" stands for the gradient of a result */
    EXACT("full", "", "value=2.5")
    EXACT("full", "", "shape=[3,5,7], value=-1")
    EXACT("slice", "x:f32[N,10,5,7]", "start=3, length=6")
    EXACT("slice", "x:f32[N,5,37]", "dim=-1, start=1, length=35")
    EXACT("slice", "x:f32[N,3,7,5]", "dim=2, start=6")
    EXACT("slice", "x:f32[2,17]", "dim=0, start=1")
    EXACT("expand", "x:f32[N,10,1,1]", "shape=[N,10,5,7]")
    EXACT("expand", "x:f32[17,1,1]", "shape=[2,17,3,5]")
    EXACT("expand", "x:f32[]", "shape=[19]")
    EXACT("expand", "x:f32[N,1,35]", "shape=[N,3,35]")
    ROUND("mean_grad", "dy:f32[N,1,1,1]", "shape=[N,17,5,7]")
    ROUND("mean_grad", "dy:f32[]", "shape=[5,37]")
    ROUND("mean_grad", "dy:f32[1,1,3]", "shape=[2,5,3]")
    EXACT("max_grad", "x:f32[N,22,5,7] dy:f32[N]", "")
    EXACT("max_grad", "x:f32[N,3,29] dy:f32[N,1,29]", "dims=[1], keep_dims=true")
    EXACT("max_grad", "x:f32[N,10] dy:f32[10]", "dims=[0]")
    EXACT("one_hot", "target:i64[N]", "depth=37")
    EXACT("one_hot", "target:i64[]", "depth=5")
    EXACT("conv2d_grad_weight", "x:f32[N,1,1,1] dy:f32[N,1,1,1]", "")
    EXACT("conv2d_grad_weight", "x:f32[N,16,14,14] dy:f32[N,17,14,14]", "kernel=[3,3], padding=[1,1,1,1]")
    EXACT("conv2d_grad_weight", "x:f32[N,3,29,14] dy:f32[N,4,15,7]", "kernel=[7,7], stride=[2,2], padding=[3,3,3,3]")
    EXACT("conv2d_grad_weight", "x:f32[N,5,9,37] dy:f32[N,3,10,37]", "kernel=[2,4], padding=[1,1,1,2]")
    EXACT("conv2d_grad_weight", "x:f32[N,12,9,10] dy:f32[N,18,5,8]",
          "kernel=[3,2], groups=3, stride=[2,1], dilation=[1,2], padding=[1,0,1,0]")
    EXACT("conv2d_grad_weight", "x:f32[N,22,7,14] dy:f32[N,22,7,14]", "kernel=[3,3], groups=22, padding=[1,1,1,1]")
    EXACT("conv2d_grad_weight", "x:f32[2,4,3,2] dy:f32[2,4,3,2]", "kernel=[5,5], padding=[2,2,2,2]")
    EXACT("linear_grad_weight", "x:f32[N,35] dy:f32[N,19]", "")
    EXACT("linear_grad_weight", "x:f32[N,5,17] dy:f32[N,5,1]", "")
    EXACT("linear_grad_weight", "x:f32[7,1] dy:f32[7,33]", "")
    ROUND("batch_norm_grad_input",
          "x:f32[N,10,5,7] weight:f32[10] mean:f32[10] variance:f32[10] dy:f32[N,10,5,7]", "")
    ROUND("batch_norm_grad_input", "x:f32[5,17] weight:f32[17] mean:f32[17] variance:f32[17] dy:f32[5,17]", "eps=0.001")
    ROUND("batch_norm_grad_weight", "x:f32[N,16,3,35] mean:f32[16] variance:f32[16] dy:f32[N,16,3,35]", "")
    ROUND("batch_norm_grad_weight", "x:f32[N,33] mean:f32[33] variance:f32[33] dy:f32[N,33]", "eps=0.001")
    EXACT("max_pool2d_grad", "x:f32[N,6,13,14] dy:f32[N,6,7,7]", "kernel=[3,3], stride=[2,2], padding=[1,1,1,1]")
    EXACT("max_pool2d_grad", "x:f32[N,17,7,14] dy:f32[N,17,4,7]", "kernel=[2,3], stride=[2,2], ceil_mode=true")
    EXACT("max_pool2d_grad", "x:f32[N,3,9,7] dy:f32[N,3,8,7]", "kernel=[3,2], dilation=[2,3], padding=[2,1,1,2]")
    ROUND("avg_pool2d_grad", "dy:f32[N,5,5,6]", "kernel=[3,3], stride=[2,2], padding=[1,1,1,1], size=[9,12]")
    ROUND("avg_pool2d_grad", "dy:f32[N,17,5,4]",
          "kernel=[3,3], stride=[2,2], padding=[1,1,1,1], count_include_pad=false, size=[9,7]")
    ROUND("avg_pool2d_grad", "dy:f32[N,10,3,3]", "kernel=[3,2], stride=[3,2], padding=[1,1,1,1], ceil_mode=true, size=[7,5]")
    ROUND("adaptive_avg_pool2d_grad", "dy:f32[N,16,1,1]", "size=[7,5]")
    ROUND("adaptive_avg_pool2d_grad", "dy:f32[N,17,3,2]", "size=[11,35]")
    ROUND("adaptive_avg_pool2d_grad", "dy:f32[N,3,5,7]", "size=[2,3]")
    EXACT("adaptive_max_pool2d_grad", "x:f32[N,7,11,13] dy:f32[N,7,1,1]", "")
    EXACT("adaptive_max_pool2d_grad", "x:f32[N,33,7,5] dy:f32[N,33,3,4]", "")
    EXACT("upsample_grad", "dy:f32[N,3,10,21]", "size=[5,7]")
    EXACT("upsample_grad", "dy:f32[N,16,14,3]", "size=[7,5]")
    EXACT("upsample_grad", "dy:f32[N,16,10,10]", "size=[5,5], mode=bilinear")
    ROUND("upsample_grad", "dy:f32[N,17,7,14]", "size=[5,1], mode=bilinear")
    ROUND("upsample_grad", "dy:f32[N,3,1,29]", "size=[7,5], mode=bilinear, align_corners=true")
    ROUND("grid_sample_grad_input", "dy:f32[N,3,5,7] theta:f32[N,2,3]", "size=[12,9]")
    ROUND("grid_sample_grad_input", "dy:f32[N,3,5,14] theta:f32[N,2,3]", "size=[7,7], padding_mode=border")
    ROUND("grid_sample_grad_input", "dy:f32[N,1,7,5] theta:f32[N,2,3]",
          "size=[1,9], padding_mode=reflection, align_corners=true")
    ROUND("grid_sample_grad_theta", "x:f32[N,3,12,9] theta:f32[N,2,3] dy:f32[N,3,5,7]", "")
    ROUND("grid_sample_grad_theta", "x:f32[N,3,7,7] theta:f32[N,2,3] dy:f32[N,3,5,14]", "padding_mode=border")
    ROUND("grid_sample_grad_theta", "x:f32[N,1,7,5] theta:f32[N,2,3] dy:f32[N,1,7,5]",
          "padding_mode=reflection, align_corners=true")
    ROUND("grid_sample_grad_theta", "x:f32[N,3,9,5] theta:f32[N,2,3] dy:f32[N,3,1,7]", "padding_mode=reflection")
    EXACT("pad_grad", "dy:f32[N,3,9,9]", "padding=[1,2,3,0]")
    EXACT("pad_grad", "dy:f32[N,17,8,17]", "padding=[2,4,1,6], padding_mode=reflect")
    EXACT("pad_grad", "dy:f32[N,3,4,12]", "padding=[2,0,1,7], padding_mode=replicate")

    /* element-wise */
    EXACT("relu_grad", "x:f32[N,17,5,7] dy:f32[N,17,5,7]", "")
    ROUND("leaky_relu_grad", "x:f32[N,16,5,7] dy:f32[N,16,5,7]", "negative_slope=0.1")
    ROUND("sigmoid_grad", "x:f32[N,43] dy:f32[N,43]", "")
    ROUND("tanh_grad", "x:f32[N,10,5,7] dy:f32[N,10,5,7]", "")
    ROUND("gelu_grad", "x:f32[N,43] dy:f32[N,43]", "")
    ROUND("gelu_grad", "x:f32[N,16,5,7] dy:f32[N,16,5,7]", "approximate=tanh")
    ROUND("silu_grad", "x:f32[N,33,1,5] dy:f32[N,33,1,5]", "")
    EXACT("clamp_grad", "x:f32[N,22,5] dy:f32[N,22,5]", "min=-1, max=2")
    ROUND("exp_grad", "x:f32[N,29] dy:f32[N,29]", "")
    ROUND("log_grad", "positive:f32[N,29] dy:f32[N,29]", "")
    ROUND("sqrt_grad", "positive:f32[N,29] dy:f32[N,29]", "")
    EXACT("abs_grad", "x:f32[N,29] dy:f32[N,29]", "")
    EXACT("neg_grad", "x:f32[N,3,1,7] dy:f32[N,3,1,7]", "")
    EXACT("relu", "x:f32[N,17,5,7]", "")
    EXACT("relu", "x:f32[N,1]", "")
    ROUND("leaky_relu", "x:f32[N,16,5,7]", "negative_slope=0.1")
    ROUND("sigmoid", "x:f32[N,43]", "")
    ROUND("tanh", "x:f32[N,10,5,7]", "")
    ROUND("gelu", "x:f32[N,43]", "")
    ROUND("gelu", "x:f32[N,16,5,7]", "approximate=tanh")
    ROUND("silu", "x:f32[N,33,1,5]", "")
    EXACT("clamp", "x:f32[N,22,5]", "min=-1, max=2")
    EXACT("clamp", "x:f32[N,17]", "max=1")
    ROUND("exp", "x:f32[N,29]", "")
    ROUND("log", "positive:f32[N,29]", "")
    ROUND("sqrt", "positive:f32[N,29]", "")
    EXACT("abs", "x:f32[N,29]", "")
    EXACT("neg", "x:f32[N,3,1,7]", "")
    EXACT("add", "x:f32[N,16,5,7] y0:f32[N,16,5,7]", "")
    EXACT("add", "x:f32[N,17,5,7] | bias:f32[17,1,1]", "")
    EXACT("sub", "x:f32[3] y0:f32[N,5,3]", "")
    EXACT("mul", "x:f32[N,10,5,7] y0:f32[N,10,1,1]", "")
    EXACT("mul", "x:f32[N,10] y0:f32[]", "")
    EXACT("mul", "x:f32[N,1,7] y0:f32[1,5,1]", "")
    ROUND("div", "x:f32[N,22] positive:f32[N,22]", "")
    ROUND("bn_scale", "x:f32[17] variance:f32[17]", "eps=0.001")
};
/* clang-format on */

size_t op_case_count(void) { return sizeof cases / sizeof cases[0]; }

const OpCase *op_case(size_t index) { return &cases[index]; }

const char *op_case_label(const OpCase *op_case, Arena *arena) {
  return arena_format(arena, "%s %s {%s}", op_case->op, op_case->operands, op_case->attributes);
}

const char *op_case_text(const OpCase *op_case, int64_t max_batch, Arena *arena) {
  Text head, inputs;
  text_init(&head, arena);
  text_init(&inputs, arena);
  text_format(&head, "graph \"%s\" {\n  max_batch %lld\n", op_case->op, (long long)max_batch);
  char *rest = arena_string(arena, op_case->operands), *word;
  const char *declaration = "input", *settings = "";
  while ((word = strtok_r(rest, " ", &rest)) != NULL) {
    if (strcmp(word, "|") == 0) {
      declaration = "parameter";
      settings = " {init=weight}";
      continue;
    }
    char *type = strchr(word, ':');
    *type++ = '\0';
    text_format(&head, "  %s %%%s : %s%s\n", declaration, word, type, settings);
    text_format(&inputs, "%s%%%s", inputs.size ? ", " : "", word);
  }
  text_format(&head, "  %%y = %s %s", op_case->op, inputs.data);
  if (*op_case->attributes) text_format(&head, " {%s}", op_case->attributes);
  text_add(&head, "\n  output y = %y\n}\n");
  return head.data;
}

Graph *op_case_graph(const OpCase *op_case, int64_t max_batch, Arena *arena, Diag *diag) {
  const char *text = op_case_text(op_case, max_batch, arena);
  Graph *graph = NULL;
  if (!graph_parse(NULL, text, strlen(text), arena, diag, &graph) || !graph_infer(graph, diag)) return NULL;
  return graph;
}

/* --- values ---------------------------------------------------------------------------------------- */

/* splitmix64 (Steele, Lea, Flood 2014): uniform in [0, 1). */
static double next_uniform(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static double next_value(const Tensor *tensor, int64_t index, int64_t classes, OpCaseFill fill, uint64_t *state) {
  const double uniform = next_uniform(state);
  if (tensor->dtype == DTYPE_I64) return (double)(int64_t)(uniform * (double)classes);
  if (strcmp(tensor->name, "theta") == 0) return (index % 6 == 0 || index % 6 == 4 ? 1 : 0) + 0.6 * uniform - 0.3;
  if (strcmp(tensor->name, "target") == 0) return uniform;
  if (strcmp(tensor->name, "hyper") == 0) return (float)(0.25 + 0.5 * uniform); /* rates, momenta, corrections */
  const bool positive = strncmp(tensor->name, "positive", 8) == 0 || strcmp(tensor->name, "variance") == 0;
  if (fill == OP_CASE_FLOATS) return (float)(positive ? 0.5 + uniform : 2 * uniform - 1);
  return positive ? 1 + (double)(int64_t)(uniform * 4) : (double)((int64_t)(uniform * 7) - 3);
}

static Tensor filled(const char *name, DataType dtype, Shape shape, int64_t batch, int64_t classes, OpCaseFill fill,
                     uint64_t *state, Arena *arena) {
  if (shape_batched(&shape)) shape.dims[0] = batch;
  Tensor tensor = tensor_create(arena, name, dtype, shape);
  const int64_t count = tensor_elements(&tensor);
  for (int64_t i = 0; i < count; i++) tensor_set(&tensor, i, next_value(&tensor, i, classes, fill, state));
  return tensor;
}

void op_case_fill(const Graph *graph, int64_t batch, OpCaseFill fill, uint64_t seed, Arena *arena,
                  TensorList *out_inputs, TensorList *out_parameters) {
  uint64_t state = seed;
  *out_inputs = (TensorList){arena_array(arena, graph->input_count, Tensor), graph->input_count};
  *out_parameters = (TensorList){arena_array(arena, graph->parameter_count, Tensor), graph->parameter_count};
  int64_t classes = 1;
  if (graph->input_count && graph->inputs[0].shape.rank > 1) classes = graph->inputs[0].shape.dims[1];
  for (size_t i = 0; i < graph->input_count; i++) {
    const GraphInput *input = &graph->inputs[i];
    out_inputs->items[i] = filled(input->name, input->dtype, input->shape, batch, classes, fill, &state, arena);
  }
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Parameter *parameter = &graph->parameters[i];
    out_parameters->items[i] =
        filled(parameter->name, parameter->dtype, parameter->shape, batch, classes, fill, &state, arena);
  }
}
