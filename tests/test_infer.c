/* What the shape rules refuse, and how they say it; and the parameters that layers have. */
#include "op_cases.h"
#include "support.h"

typedef struct Mistake {
  const char *op, *operands, *attributes, *message;
} Mistake;

/* clang-format off */
static const Mistake mistakes[] = {
    /* attributes out of range */
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,3]", "stride=[0,1]", "stride height expects a value from 1 to 65535, found 0"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,3]", "stride=[1,65536]", "stride width expects a value from 1 to 65535, found 65536"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,3]", "dilation=[1,0]", "dilation width expects a value from 1 to 65535, found 0"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,3]", "dilation=[4611686018427387904,1]", "dilation height expects a value from 1 to 65535, found 4611686018427387904"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,3]", "padding=[36028797018963968,0,0,0]", "padding top expects a value from 0 to 65535, found 36028797018963968"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,3]", "padding=[0,0,-1,0]", "padding bottom expects a value from 0 to 65535, found -1"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,3]", "groups=0", "groups expects a value from 1 to 2147483647, found 0"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,3]", "groups=2", "groups 2 does not divide the 3 input channels"},
    {"conv2d", "x:f32[N,4,7,7] | w:f32[5,2,3,3]", "groups=2", "groups 2 does not divide the 5 output channels"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,3]", "stride=[0,0], groups=-1", "groups expects a value from 1 to 2147483647, found -1"},
    {"max_pool2d", "x:f32[N,3,7,7]", "kernel=[0,1]", "kernel height expects a value from 1 to 65535, found 0"},
    {"max_pool2d", "x:f32[N,3,7,7]", "stride=[1,0]", "stride width expects a value from 1 to 65535, found 0"},
    {"avg_pool2d", "x:f32[N,3,7,7]", "stride=[-2,1]", "stride height expects a value from 1 to 65535, found -2"},
    {"avg_pool2d", "x:f32[N,3,7,7]", "kernel=[2,2], padding=[0,0,0,65536]", "padding right expects a value from 0 to 65535, found 65536"},
    {"adaptive_avg_pool2d", "x:f32[N,3,7,7]", "output=[0,1]", "output height expects a value from 1 to 65535, found 0"},
    {"adaptive_max_pool2d", "x:f32[N,3,7,7]", "output=[1,70000]", "output width expects a value from 1 to 65535, found 70000"},
    {"adaptive_concat_pool2d", "x:f32[N,3,7,7]", "output=[-1,1]", "output height expects a value from 1 to 65535, found -1"},
    {"upsample", "x:f32[N,3,7,7]", "scale=[0,2]", "scale height expects a value from 1 to 65535, found 0"},
    {"upsample", "x:f32[N,3,7,7]", "size=[-4,2]", "size height expects a value from 0 to 65535, found -4"},
    {"batch_norm", "x:f32[N,3] | w:f32[3] b:f32[3] mean:f32[3] variance:f32[3]", "eps=-1", "eps expects a number from 0 to"},
    {"batch_norm", "x:f32[N,3] | w:f32[3] b:f32[3] mean:f32[3] variance:f32[3]", "eps=nan", "found nan"},
    {"batch_norm", "x:f32[N,3] | w:f32[3] b:f32[3] mean:f32[3] variance:f32[3]", "momentum=1.5", "momentum expects a number from 0 to 1, found 1.5"},
    {"dropout", "x:f32[N,3]", "p=-0.5", "p expects a number from 0 to 1, found -0.5"},
    {"leaky_relu", "x:f32[N,3]", "negative_slope=inf", "found inf"},
    {"clamp", "x:f32[N,3]", "min=2, max=1", "min 2 is greater than max 1"},
    {"clamp", "x:f32[N,3]", "min=nan", "min expects a number from -inf to inf, found nan"},

    /* convolution */
    {"conv2d", "x:f32[N,128,7,7] | w:f32[5,64,3,3]", "", "weight expects 64 input channels, found 128"},
    {"conv2d", "x:f32[N,12,7,7] | w:f32[6,3,3,3]", "groups=3", "weight expects 3 input channels in each of 3 groups, found 4 of 12"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,3] b:f32[6]", "", "bias expects shape [5], found [6]"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,3] b:f32[5,1]", "", "bias expects shape [5], found [5,1]"},
    {"conv2d", "x:f32[N,3,7] | w:f32[5,3,3,3]", "", "input expects 4 dimensions, found 3: [N,3,7]"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,27]", "", "weight expects 4 dimensions, found 2: [5,27]"},
    {"conv2d", "x:i64[N,3,7,7] | w:f32[5,3,3,3]", "", "input expects f32 values, found i64"},
    {"conv2d", "x:f32[N,3,7,7] | w:f16[5,3,3,3]", "", "weight expects f32 values, found f16"},
    {"conv2d", "x:f32[N,3,7,7] w:f32[N,3,3,3]", "", "weight [N,3,3,3] must not depend on the batch"},
    {"conv2d", "x:f32[N,3,2,7] | w:f32[5,3,3,3]", "", "kernel height 3 with dilation 1 covers 3, but the padded input has only 2"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,3]", "dilation=[1,9], padding=[0,5,0,5]", "kernel width 3 with dilation 9 covers 19, but the padded input has only 17"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,3]", "kernel=[3,5]", "kernel is 3x5, but the weight is [5,3,3,3]"},
    {"conv2d", "x:f32[N,3,3,7] | w:f32[5,3,3,3]", "padding_mode=reflect, padding=[3,0,0,0]", "reflection padding along the height must be less than the input's 3, found 3"},
    {"conv2d", "x:f32[N,3,7,7] | w:f32[5,3,3,65536]", "", "kernel width expects a value from 1 to 65535"},
    {"conv2d", "x:f32[N,1,60000,60000] | w:f32[1000,1,1,1]", "", "output [N,1000,60000,60000] is too large: the limit is 2^40 elements per image"},
    {"conv2d", "x:f32[N,1,2097152,1048576] | w:f32[1,1,1,1]", "", "is too large: the limit is 2^40 elements per image"},
    {"conv_transpose2d", "x:f32[N,3,7,7] | w:f32[4,3,3,3]", "", "weight expects 4 input channels, found 3"},
    {"conv_transpose2d", "x:f32[N,4,7,7] | w:f32[4,3,3,3] b:f32[3]", "groups=2", "bias expects shape [6], found [3]"},
    {"conv_transpose2d", "x:f32[N,4,7,7] | w:f32[4,3,3,3]", "groups=3", "groups 3 does not divide the 4 input channels"},
    {"conv_transpose2d", "x:f32[N,4,1,7] | w:f32[4,3,3,3]", "padding=[2,0,1,0]", "the output's height is 3 before 3 are cut off as padding: nothing is left"},
    {"conv_transpose2d", "x:f32[N,4,7,7] | w:f32[4,3,3,3]", "stride=[1,2], output_padding=[1,1]", "output_padding height 1 must be less than the stride 1 or the dilation 1"},
    {"conv_transpose2d", "x:f32[N,4,7,7] | w:f32[4,3,3,3]", "stride=[65536,1]", "stride height expects a value from 1 to 65535, found 65536"},

    /* matrix products */
    {"linear", "x:f32[N,10] | w:f32[5,12]", "", "weight expects 12 input features, found 10"},
    {"linear", "x:f32[N,10] | w:f32[5,10] b:f32[4]", "", "bias expects shape [5], found [4]"},
    {"linear", "x:f32[10] | w:f32[5,10]", "", "input expects at least 2 dimensions, found 1: [10]"},
    {"linear", "x:f32[5,10] w:f32[N,10]", "", "weight [N,10] must not depend on the batch"},
    {"matmul", "x:f32[N,3] y0:f32[4,5]", "", "second input expects 4 columns of the first, found 3: [N,3] and [4,5]"},
    {"matmul", "x:f32[5,3] y0:f32[N,3]", "transpose=true", "output would have the batch dimension N in place 1, but N must stay the first"},
    {"matmul", "x:f32[5,3] y0:f32[N,3]", "", "cannot sum over the batch dimension N of the second input [N,3]"},
    {"matmul", "x:f32[N,3] y0:f32[2,3,4]", "", "output would have the batch dimension N in place 1"},
    {"matmul", "x:f32[N,2,3,4] y0:f32[N,5,4,3]", "", "leading dimensions of [N,2,3,4] and [N,5,4,3] do not broadcast"},
    {"matmul", "x:f32[N] y0:f32[4,5]", "", "both inputs expect at least 2 dimensions, found [N] and [4,5]"},

    /* normalisation */
    {"batch_norm", "x:f32[N,3] | w:f32[4] b:f32[3] mean:f32[3] variance:f32[3]", "", "weight expects shape [3], found [4]"},
    {"batch_norm", "x:f32[N,3] | w:f32[3] b:f32[3] mean:f32[3] variance:f32[2]", "", "running variance expects shape [3], found [2]"},
    {"batch_norm", "x:f32[N] | w:f32[3] b:f32[3] mean:f32[3] variance:f32[3]", "", "input expects at least 2 dimensions, found 1: [N]"},
    {"batch_norm", "x:f32[1,3] | w:f32[3] b:f32[3] mean:f32[3] variance:f32[3]", "training=true", "training needs more than 1 value per channel, found input [1,3]"},
    {"batch_norm", "x:f32[N,3] | w:f32[3]", "", "batch_norm expects 5 inputs, found 2"},
    {"normalize", "x:f32[N,3,5,5]", "mean=[0.5], std=[1,1,1]", "mean expects 3 values, one per channel, found 1"},
    {"normalize", "x:f32[N,1,5,5]", "mean=[0.5]", "std expects 1 values, one per channel, found 0"},
    {"normalize", "x:f32[N,1,5,5]", "mean=[0.5], std=[0]", "std expects finite numbers above 0, found 0"},
    {"normalize", "x:f32[N,1,5,5]", "mean=[inf], std=[1]", "mean expects finite numbers, found inf"},
    {"plane_moments", "x:f32[N,3,5]", "", "input expects 4 dimensions, found 3: [N,3,5]"},
    {"plane_moments", "x:f32[N,3,6,5]", "parts=4",
     "parts expects a number of equal runs of rows, the last one not empty, found 4 of 6"},
    {"batch_stats", "x:f32[N,3,6,5] moments:f32[N,3,4,2]", "",
     "moments of [N,3,6,5] expect shape [N,C,parts,2], found [N,3,4,2]"},
    {"batch_stats", "x:f32[N]", "", "input expects at least 2 dimensions, found 1: [N]"},
    {"bn_update", "r:f32[3] s:f32[3,2] x:f32[N,3]", "", "batch statistics expect shape [2,3], found [3,2]"},
    {"bn_update", "r:f32[2] s:f32[2,3] x:f32[N,3]", "", "running statistic expects shape [3], found [2]"},
    {"sgd_step", "x:f32[3,32] g:f32[32] h:f32[1,16] l:f32[]", "segments=[32], decayed=[16]", "state expects 2 rows, found [3,32]"},
    {"sgd_step", "x:f32[2,32] g:f32[16] h:f32[1,16] l:f32[]", "segments=[32], decayed=[16]", "gradients expects shape [32], found [16]"},
    {"sgd_step", "x:f32[2,32] g:f32[32] h:f32[1,8] l:f32[]", "segments=[32], decayed=[16]", "hyper expects 1 to 8 rows of 16 numbers, found [1,8]"},
    {"sgd_step", "x:f32[2,32] g:f32[32] h:f32[1,16] l:f32[2]", "segments=[32], decayed=[16]", "loss expects 0 dimensions, found 1: [2]"},
    {"adam_step", "x:f32[3,32] g:f32[32] h:f32[2,16] l:f32[]", "segments=[32], decayed=[16]", "segments and decayed expect a number per row of hyper, 2, found 1 and 1"},
    {"adam_step", "x:f32[4,32] g:f32[32] h:f32[1,16] l:f32[]", "segments=[32], decayed=[33], accumulate=true", "decayed[0] expects a number from 0 to 32, found 33"},
    {"adam_step", "x:f32[3,32] g:f32[32] h:f32[1,16] l:f32[]", "segments=[16], decayed=[16]", "segments end at 16, a row of the state at 32"},
    {"sum_squares", "x:f32[N]", "", "input expects a fixed number of values, found [N]"},
    {"pack", "x:f32[N,3] z:f32[2]", "", "input 0 must not be batched"},
    {"dropout", "x:f32[N,3] r:i64[3]", "", "rng expects shape [2], found [3]"},
    {"bn_update", "r:f32[3] s:f32[2,3] x:f32[N,3] l:f32[1]", "", "loss expects 0 dimensions, found 1: [1]"},
    {"bn_update", "r:f32[3] s:f32[2,3] x:f32[N,3]", "dim=2", "dim expects 0 for the mean or 1 for the variance, found 2"},

    /* pooling and resampling */
    {"max_pool2d", "x:f32[N,3,7,7]", "kernel=[3,3], padding=[2,1,1,1]", "padding along the height must be at most half of the kernel 3, found 2"},
    {"max_pool2d", "x:f32[N,3,2,7]", "kernel=[3,3]", "kernel height 3 with dilation 1 covers 3, but the padded input has only 2"},
    {"avg_pool2d", "x:f32[N,3,7]", "kernel=[3,3]", "input expects 4 dimensions, found 3: [N,3,7]"},
    {"upsample", "x:f32[N,3,7,7]", "size=[5,0]", "size expects height and width above 0, found 5x0"},
    {"upsample", "x:f32[N,3,7,7]", "size=[5,5], scale=[2,2]", "size and scale exclude each other"},
    {"upsample", "x:f32[N,3,7,7]", "align_corners=true", "align_corners needs mode bilinear, found nearest"},
    {"upsample", "x:f32[N,300,700,700]", "scale=[65535,65535]", "is too large: the limit is 2^40 elements per image"},
    {"grid_sample", "x:f32[N,3,7,7] theta:f32[2,2,3]", "", "theta expects shape [N,2,3], found [2,2,3]"},
    {"grid_sample", "x:f32[N,3,7,7] theta:f32[N,2,3]", "size=[0,5]", "size expects height and width above 0, found 0x5"},
    {"pad", "x:f32[N,3,7,7]", "padding=[-1,0,0,0]", "padding top expects a value from 0 to 65535, found -1"},
    {"pad", "x:f32[N,3,7,4]", "padding_mode=reflect, padding=[0,0,0,4]", "reflection padding along the width must be less than the input's 4, found 4"},
    {"pad", "x:f32[N,3,7,4]", "padding_mode=replicate, value=1", "value needs padding_mode zeros, found replicate"},

    /* shape */
    {"flatten", "x:f32[N,3,7]", "start_dim=0", "start_dim 0 would merge the batch dimension N of [N,3,7] with others"},
    {"flatten", "x:f32[N,3,7]", "start_dim=3", "start_dim expects a value from -3 to 2 for 3 dimensions, found 3"},
    {"flatten", "x:f32[N,3,7]", "start_dim=2, end_dim=1", "start_dim 2 is behind end_dim 1"},
    {"reshape", "x:f32[N,6,7]", "shape=[6,N,7]", "shape must begin with the batch dimension N of the input [N,6,7]"},
    {"reshape", "x:f32[N,6,7]", "shape=[N,41]", "shape holds 41 elements per image, but the input [N,6,7] has 42"},
    {"reshape", "x:f32[N,6,7]", "shape=[N,-1,5]", "shape's known dimensions hold 5 elements, which does not divide the input's 42"},
    {"reshape", "x:f32[N,6,7]", "shape=[N,-1,-1]", "shape has more than one dimension of -1: 1 and 2"},
    {"reshape", "x:f32[N,6,7]", "shape=[N,0,7]", "shape expects dimensions of at least 1 or one of -1, found 0"},
    {"reshape", "x:f32[N,6,7]", "shape=[N,4294967296,4294967296]", "the product of shape overflows"},
    {"reshape", "x:f32[N,6,7]", "shape=[N,1,1,1,1,6,7]", "shape expects at most 6 dimensions, found 7"},
    {"permute", "x:f32[N,3,7]", "dims=[1,0,2]", "output would have the batch dimension N in place 1, but N must stay the first"},
    {"permute", "x:f32[N,3,7]", "dims=[0,1]", "dims expects 3 dimensions, found 2"},
    {"permute", "x:f32[N,3,7]", "dims=[0,1,-2]", "dims names dimension 1 twice"},
    {"permute", "x:f32[N,3,7]", "dims=[0,1,3]", "dims expects a value from -3 to 2 for 3 dimensions, found 3"},
    {"concat", "x:f32[N,3] y0:f32[N,3]", "dim=0", "dim 0 is the batch dimension N, along which values cannot be joined"},
    {"concat", "x:f32[N,3,5] y0:f32[N,3,4]", "", "input 1 differs from input 0 in more than dimension 1: [N,3,4] and [N,3,5]"},
    {"concat", "x:f32[N,3,5] y0:f32[N,3]", "", "input 1 differs from input 0 in more than dimension 1: [N,3] and [N,3,5]"},
    {"concat", "x:f32[N,3] y0:i64[N,3]", "", "input 1 expects f32 values like input 0, found i64"},
    {"concat", "x:f32[2,3] y0:f32[N,3]", "dim=0", "input 1 differs from input 0"},
    {"concat", "x:f32[N,3] y0:f32[N,3]", "dim=2", "dim expects a value from -2 to 1 for 2 dimensions, found 2"},

    /* reductions and losses */
    {"softmax", "x:f32[N,3]", "dim=0", "dim 0 is the batch dimension N: softmax works within an image"},
    {"softmax", "x:f32[N,3]", "dim=-3", "dim expects a value from -2 to 1 for 2 dimensions, found -3"},
    {"log_softmax", "x:f32[]", "", "dim 1: the input is a scalar and has no dimensions"},
    {"argmax", "x:f32[N,3]", "dim=-2", "dim 0 is the batch dimension N: argmax works within an image"},
    {"mean", "x:f32[N,3]", "dims=[1,-1]", "dims names dimension 1 twice"},
    {"sum", "x:f32[N,3]", "dims=[2]", "dims expects a value from -2 to 1 for 2 dimensions, found 2"},
    {"max", "x:i64[N,3]", "", "input expects f32 values, found i64"},
    {"stats_partial", "x:i64[N,3]", "", "input expects f32 values, found i64"},
    {"stats_partial", "x:f32[N,3]", "bins=255", "bins expects a value from 1 to 254, found 255"},
    {"stats_partial", "x:f32[N,3]", "bins=0", "bins expects a value from 1 to 254, found 0"},
    {"stats_partial", "x:f32[N,3]", "low=10", "low expects a number below high, found 10 and 10"},
    {"stats_partial", "x:f32[N,3]", "low=0.1, high=0.10000000001", "low expects a number below high, found 0.1 and 0.10000000001"},
    {"stats_partial", "x:f32[N,3]", "high=inf", "high expects a number from"},
    {"stats_final", "x:f32[N,45]", "", "partial statistics expects 3 dimensions, found 2: [N,45]"},
    {"stats_final", "x:f32[N,3,5]", "", "partial statistics expects more than 5 fields, found 5"},
    {"cross_entropy", "x:f32[N,10] target:f32[N]", "", "target expects i64 values, found f32"},
    {"cross_entropy", "x:f32[N,10] target:i64[N,1]", "", "target expects a class index per row, shape [N], found [N,1]"},
    {"cross_entropy", "x:f32[N] target:i64[N]", "", "input expects 2 dimensions, found 1: [N]"},
    {"mse", "x:f32[N,3] target:f32[N,1]", "", "target expects the input's shape [N,3], found [N,1]"},
    {"bce_with_logits", "x:f32[N,3] target:i64[N,3]", "", "target expects f32 values, found i64"},

    /* made by differentiation */
    {"full", "", "shape=[3,N]", "output would have the batch dimension N in place 1, but N must stay the first"},
    {"slice", "x:f32[N,3]", "dim=0", "dim 0 is the batch dimension N, which cannot be cut"},
    {"slice", "x:f32[N,3]", "start=1, length=3", "start 1 and length 3 reach beyond dimension 1 of [N,3]"},
    {"slice", "x:f32[N,3]", "start=-1", "start expects a value from 0 to 1099511627776, found -1"},
    {"expand", "x:f32[N,3]", "shape=[N,6]", "input [N,3] does not broadcast to [N,6]"},
    {"expand", "x:f32[N,3]", "shape=[2,3]", "input [N,3] does not broadcast to [2,3]"},
    {"mean_grad", "x:f32[2,3]", "shape=[1,3]", "input [2,3] does not broadcast to [1,3]"},
    {"max_grad", "x:f32[N,3] dy:f32[N,1]", "", "gradient expects shape [N], found [N,1]"},
    {"one_hot", "x:i64[N,3]", "depth=2", "classes expect at most 1 dimension, found 2: [N,3]"},
    {"one_hot", "x:f32[N]", "depth=2", "classes expects i64 values, found f32"},
    {"conv2d_grad_weight", "x:f32[N,3,7,7] dy:f32[2,4,7,7]", "", "input [N,3,7,7] and gradient [2,4,7,7] differ in the batch"},
    {"conv2d_grad_weight", "x:f32[N,3,7,7] dy:f32[N,4,7,7]", "kernel=[3,1]", "gradient [N,4,7,7] has more places than the 5 windows along the height"},
    {"conv2d_grad_weight", "x:f32[N,3,7,7] dy:f32[N,4,7,7]", "groups=2", "groups 2 does not divide the channels of [N,3,7,7] and [N,4,7,7]"},
    {"linear_grad_weight", "x:f32[N,5,3] dy:f32[N,4,3]", "", "input [N,5,3] and gradient [N,4,3] must differ in nothing but the last dimension"},
    {"batch_norm_grad_input", "x:f32[N,3] a:f32[3] b:f32[3] c:f32[4] dy:f32[N,3]", "", "variance expects shape [3], found [4]"},
    {"batch_norm_grad_weight", "x:f32[N,3] a:f32[3] b:f32[3] dy:f32[N,4]", "", "gradient expects shape [N,3], found [N,4]"},
    {"max_pool2d_grad", "x:f32[N,3,8,8] dy:f32[N,3,5,4]", "kernel=[2,2], stride=[2,2]", "gradient expects shape [N,3,4,4], found [N,3,5,4]"},
    {"avg_pool2d_grad", "dy:f32[N,3,4,4]", "kernel=[2,2], stride=[2,2]", "size expects the input's height and width, found 0x0"},
    {"avg_pool2d_grad", "dy:f32[N,3,4,4]", "kernel=[2,2], stride=[2,2], size=[8,10]", "gradient expects shape [N,3,4,5], found [N,3,4,4]"},
    {"adaptive_avg_pool2d_grad", "dy:f32[N,3,1]", "size=[2,2]", "input expects 4 dimensions, found 3: [N,3,1]"},
    {"adaptive_max_pool2d_grad", "x:f32[N,3,4,4] dy:f32[N,4,1,1]", "", "gradient expects shape [N,3,1,1], found [N,4,1,1]"},
    {"upsample_grad", "dy:f32[N,3,4,4]", "size=[0,2]", "size expects the input's height and width, found 0x2"},
    {"grid_sample_grad_input", "dy:f32[N,3,4,4] theta:f32[N,2,3]", "size=[3,0]", "size expects the input's height and width, found 3x0"},
    {"grid_sample_grad_input", "dy:f32[N,3,4,4] theta:f32[N,3,3]", "size=[3,2]", "theta expects shape [N,2,3], found [N,3,3]"},
    {"grid_sample_grad_theta", "x:f32[N,3,4,4] theta:f32[N,2] dy:f32[N,3,4,4]", "", "theta expects shape [N,2,3], found [N,2]"},
    {"grid_sample_grad_theta", "x:f32[N,3,4,4] theta:f32[N,2,3] dy:f32[N,2,4,5]", "", "gradient expects shape [N,3,4,5], found [N,2,4,5]"},
    {"pad_grad", "dy:f32[N,3,4,4]", "padding=[2,0,2,0]", "the height of [N,3,4,4] has no room for 4 elements of padding"},
    {"pad_grad", "dy:f32[N,3,4,4]", "padding=[2,0,0,0], padding_mode=reflect", "reflection padding along the height must be less than the input's 2, found 2"},

    /* element-wise */
    {"relu_grad", "x:f32[N,3] dy:f32[N,4]", "", "shapes [N,3] and [N,4] do not broadcast"},
    {"add", "x:f32[N,3] y0:f32[N,4]", "", "shapes [N,3] and [N,4] do not broadcast"},
    {"add", "x:f32[N,3] y0:f32[2,3]", "", "shapes [N,3] and [2,3] do not broadcast"},
    {"mul", "x:f32[N] y0:f32[5,1]", "", "output would have the batch dimension N in place 1, but N must stay the first"},
    {"div", "x:f32[N,3] y0:i64[N,3]", "", "second input expects f32 values, found i64"},
    {"relu", "x:i64[N,3]", "", "input expects f32 values, found i64"},
    {"sub", "x:f32[1,1048576,1] y0:f32[1048576,1,2]", "", "output [1048576,1048576,2] is too large: the limit is 2^40 elements per image"},
};
/* clang-format on */

static void test_mistakes(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
    const Mistake *mistake = &mistakes[i];
    const OpCase line = {mistake->op, mistake->operands, mistake->attributes, false};
    clear_messages(fixture);
    if (op_case_graph(&line, 1, fixture->arena, fixture->diag)) {
      fail_msg("accepted: %s", op_case_label(&line, fixture->arena));
    }
    const char *text = diag_text(fixture->diag, fixture->arena);
    if (!strstr(text, mistake->message)) {
      fail_msg("%s:\nexpected '%s' in: %s", op_case_label(&line, fixture->arena), mistake->message, text);
    }
  }
}

/* Every op with attributes or operands that can be wrong stands in the table. */
static void test_mistakes_cover_ops(void **state) {
  (void)state;
  for (OpCode op = 0; op < OP_COUNT; op++) {
    const OpInfo *info = op_info(op);
    if (info->kind != OP_KIND_OTHER || (info->attrs == 0 && info->inputs_max == 1)) continue;
    bool found = false;
    for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) found |= strcmp(mistakes[i].op, info->name) == 0;
    if (!found) fail_msg("no mistake for %s", info->name);
  }
}

static void check_shape(const char *op, const char *operands, const char *attributes, const char *expected,
                        Fixture *fixture) {
  const OpCase line = {op, operands, attributes, false};
  Graph *graph = op_case_graph(&line, 1, fixture->arena, fixture->diag);
  if (!graph) fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  Text text;
  text_init(&text, fixture->arena);
  shape_print(&text, &graph->outputs[0].node->shape);
  assert_string_equal(text.data, expected);
}

static void test_shapes(void **state) {
  Fixture *fixture = *state;
  check_shape("conv2d", "x:f32[N,3,352,352] | w:f32[64,3,7,7]", "stride=[2,2], padding=[3,3,3,3]", "N,64,176,176",
              fixture);
  check_shape("conv2d", "x:f32[N,3,9,9] | w:f32[4,3,3,3]", "dilation=[4,1]", "N,4,1,7", fixture);
  check_shape("conv_transpose2d", "x:f32[N,6,5,9] | w:f32[6,4,3,3]",
              "stride=[2,2], padding=[1,1,1,1], output_padding=[1,1]", "N,4,10,18", fixture);
  check_shape("conv_transpose2d", "x:f32[N,4,5,5] | w:f32[4,3,2,2]", "groups=2", "N,6,6,6", fixture);
  /* the last window must start inside: at 5 of 5 it does not */
  check_shape("max_pool2d", "x:f32[N,1,5,6]", "kernel=[1,1], stride=[5,5], ceil_mode=true", "N,1,1,2", fixture);
  check_shape("max_pool2d", "x:f32[N,1,6,7]", "kernel=[2,2], stride=[2,2], ceil_mode=true", "N,1,3,4", fixture);
  check_shape("max_pool2d", "x:f32[N,1,6,7]", "kernel=[2,2], stride=[2,2]", "N,1,3,3", fixture);
  check_shape("adaptive_concat_pool2d", "x:f32[N,5,11,11]", "", "N,10,1,1", fixture);
  check_shape("linear", "x:f32[N,5,7] | w:f32[3,7]", "", "N,5,3", fixture);
  check_shape("matmul", "x:f32[N,2,3,4] y0:f32[2,4,5]", "", "N,2,3,5", fixture);
  check_shape("flatten", "x:f32[N,3,5,7]", "start_dim=-2", "N,3,35", fixture);
  check_shape("flatten", "x:f32[]", "", "1", fixture);
  check_shape("reshape", "x:f32[N,12]", "shape=[N,3,-1]", "N,3,4", fixture);
  check_shape("reshape", "x:f32[4,3]", "shape=[-1]", "12", fixture);
  check_shape("mean", "x:f32[N,3,5,7]", "", "N", fixture);
  check_shape("mean", "x:f32[N,3,5,7]", "dims=[0], keep_dims=true", "1,3,5,7", fixture);
  check_shape("sum", "x:f32[N,3]", "dims=[0,1]", "", fixture);
  check_shape("add", "x:f32[3,1] y0:f32[N,1,5]", "", "N,3,5", fixture);
  check_shape("mul", "x:f32[1,3] y0:f32[N,1]", "", "N,3", fixture);
  check_shape("cross_entropy", "x:f32[N,3] target:i64[N]", "", "", fixture);
  check_shape("grid_sample", "x:f32[N,3,7,7] theta:f32[N,2,3]", "size=[5,9]", "N,3,5,9", fixture);
}

/* --- parameters ------------------------------------------------------------------------------------ */

/* "weight[5,3,3,3] fan_in 27; bias[5] …" */
static const char *describe_parameters(Fixture *fixture, OpCode op, const Attrs *attrs, Shape input) {
  ParameterSpec specs[PARAMETER_SPEC_MAX];
  const size_t count = op_info(op)->parameters(attrs, &input, specs);
  Text text;
  text_init(&text, fixture->arena);
  for (size_t i = 0; i < count; i++) {
    text_format(&text, "%s%s[", i ? "; " : "", specs[i].suffix);
    shape_print(&text, &specs[i].shape);
    text_format(&text, "] init %d fan_in %d%s%s", (int)specs[i].init, (int)specs[i].fan_in,
                specs[i].trainable ? " trainable" : "", specs[i].buffer ? " buffer" : "");
  }
  return text.data;
}

static void test_parameters(void **state) {
  Fixture *fixture = *state;
  const Shape image = {4, {DIM_BATCH, 6, 9, 9}};
  Attrs attrs = attrs_default();
  attrs.out_channels = 4;
  attrs.kernel = (AttrInt2){{3, 5}};
  attrs.groups = 2;
  assert_string_equal(describe_parameters(fixture, OP_CONV2D, &attrs, image),
                      "weight[4,3,3,5] init 0 fan_in 45 trainable; bias[4] init 1 fan_in 45 trainable");
  assert_string_equal(describe_parameters(fixture, OP_CONV_TRANSPOSE2D, &attrs, image),
                      "weight[6,2,3,5] init 0 fan_in 30 trainable; bias[4] init 1 fan_in 30 trainable");
  attrs.bias = false;
  attrs.out_features = 7;
  assert_string_equal(describe_parameters(fixture, OP_LINEAR, &attrs, (Shape){2, {DIM_BATCH, 6}}),
                      "weight[7,6] init 0 fan_in 6 trainable");
  assert_string_equal(describe_parameters(fixture, OP_BATCH_NORM, &attrs, image),
                      "weight[6] init 3 fan_in 0 trainable; bias[6] init 2 fan_in 0 trainable; "
                      "running_mean[6] init 2 fan_in 0 buffer; running_var[6] init 3 fan_in 0 buffer");
  assert_string_equal(describe_parameters(fixture, OP_RELU, &attrs, image), "");
  /* nonsense in, no nonsense dimensions out: −1 would mean the batch */
  attrs.out_channels = -1;
  attrs.groups = 0;
  assert_string_equal(describe_parameters(fixture, OP_CONV2D, &attrs, (Shape){0}),
                      "weight[0,0,3,5] init 0 fan_in 0 trainable");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_mistakes),
      fixture_test(test_mistakes_cover_ops),
      fixture_test(test_shapes),
      fixture_test(test_parameters),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
