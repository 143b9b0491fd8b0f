/* kiln devices: what programs can run on, and why not. */
#include <string.h>

#include "common.h"
#include "core/cuda_run.h"
#include "cuda/nvrtc.h"

static void print_processor(Tool *tool) {
  Target target;
  if (!cpu_target("native", NULL, tool->arena, tool->diag, &target)) return;
  printf("cpu      %s, vectors of %d floats, %d processors\n", target.isa, (int)target.vector_lanes,
         (int)cpu_threads(0));
}

static void print_gpu(int32_t number) {
  CudaDeviceInfo info;
  CudaMessage message;
  char name[32];
  snprintf(name, sizeof name, number == 0 ? "cuda" : "cuda:%d", (int)number);
  if (cuda_device_info(number, &info, &message) != KILN_OK) {
    printf("%-8s not usable: %s\n", name, message.text);
    return;
  }
  printf("%-8s %s, compute capability %d.%d, %d multiprocessors, %.1f GiB, %lld KiB of shared memory, %lld MiB of L2\n",
         name, info.name, (int)info.arch / 10, (int)info.arch % 10, (int)info.multiprocessors,
         (double)info.memory_bytes / (1 << 30), (long long)info.shared_bytes >> 10, (long long)info.l2_bytes >> 20);
}

static void print_nvrtc(void) {
  const char *reason;
  const NvrtcInfo *info = nvrtc_info(&reason);
  if (info == NULL) {
    printf("NVRTC    %s\n", reason);
    return;
  }
  printf("NVRTC    %d.%d, %s, for", (int)info->major, (int)info->minor, info->path);
  for (size_t i = 0; i < info->arch_count; i++) printf(" sm_%d", (int)info->archs[i]);
  printf("\n");
}

static int devices_body(Tool *tool, void *context) {
  (void)context;
  CudaMessage message;
  print_processor(tool);
  const CudaDriver *driver = cuda_driver(&message);
  if (driver == NULL) printf("cuda     %s\n", message.text);
  for (int32_t i = 0, count = cuda_device_count(NULL); i < count; i++) print_gpu(i);
  if (driver != NULL) printf("driver   CUDA %d.%d\n", driver->version / 1000, driver->version % 1000 / 10);
  print_nvrtc();
  return EXIT_OK;
}

static int devices_run(int argc, char **argv) {
  const Option options[] = {{.name = NULL}};
  int code = options_parse(&verb_devices, options, argc, argv, 0, 0, NULL);
  return code >= 0 ? code : tool_run(devices_body, NULL);
}

const Verb verb_devices = {
    "devices",
    "list what programs can run on",
    "",
    "Lists this processor and the GPUs with the names that --device takes, and the libraries that GPUs need: the CUDA\n"
    "driver to run programs ($KILN_CUDA_DRIVER, or libcuda.so.1) and NVRTC to compile them ($KILN_NVRTC, or one of "
    "the\n"
    "system's or a toolkit's). What is missing is said, with the reason.",
    "  kiln devices",
    devices_run};
