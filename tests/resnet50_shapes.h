/* The distinct convolutions of ResNet-50 at 224 x 224 (He et al., arXiv 1512.03385, with the stride in the 3x3
 * convolution), for tests and tables. */
#ifndef KILN_TESTS_RESNET50_SHAPES_H
#define KILN_TESTS_RESNET50_SHAPES_H

typedef struct ConvShapeRow {
  const char *name;
  int channels, size, filters, kernel, stride, padding;
  int residual; /* an addition follows */
} ConvShapeRow;

static const ConvShapeRow resnet50_shapes[] = {
    {"conv1", 3, 224, 64, 7, 2, 3, 0},
    {"layer1.0.conv1", 64, 56, 64, 1, 1, 0, 0},
    {"layer1.conv2", 64, 56, 64, 3, 1, 1, 0},
    {"layer1.conv3", 64, 56, 256, 1, 1, 0, 1},
    {"layer1.conv1", 256, 56, 64, 1, 1, 0, 0},
    {"layer2.0.conv1", 256, 56, 128, 1, 1, 0, 0},
    {"layer2.0.conv2", 128, 56, 128, 3, 2, 1, 0},
    {"layer2.0.downsample", 256, 56, 512, 1, 2, 0, 0},
    {"layer2.conv3", 128, 28, 512, 1, 1, 0, 1},
    {"layer2.conv1", 512, 28, 128, 1, 1, 0, 0},
    {"layer2.conv2", 128, 28, 128, 3, 1, 1, 0},
    {"layer3.0.conv1", 512, 28, 256, 1, 1, 0, 0},
    {"layer3.0.conv2", 256, 28, 256, 3, 2, 1, 0},
    {"layer3.0.downsample", 512, 28, 1024, 1, 2, 0, 0},
    {"layer3.conv3", 256, 14, 1024, 1, 1, 0, 1},
    {"layer3.conv1", 1024, 14, 256, 1, 1, 0, 0},
    {"layer3.conv2", 256, 14, 256, 3, 1, 1, 0},
    {"layer4.0.conv1", 1024, 14, 512, 1, 1, 0, 0},
    {"layer4.0.conv2", 512, 14, 512, 3, 2, 1, 0},
    {"layer4.0.downsample", 1024, 14, 2048, 1, 2, 0, 0},
    {"layer4.conv3", 512, 7, 2048, 1, 1, 0, 1},
    {"layer4.conv1", 2048, 7, 512, 1, 1, 0, 0},
    {"layer4.conv2", 512, 7, 512, 3, 1, 1, 0},
};
enum { RESNET50_SHAPE_COUNT = sizeof resnet50_shapes / sizeof *resnet50_shapes };

#endif
