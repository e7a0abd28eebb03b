/* CUDA's runtime in host memory, for tests: memory is the host's, work is done when it is asked for, kernels do nothing.
 *
 * What a session does to the GPU is written to the file $CUDA_CALLS, a line each:
 *   kernel NAME | copy KIND BYTES | clear BYTES | wait WHAT | capture | refused WHAT | replay | allocate BYTES
 * "refused" is what the real one would refuse while a stream is captured. With $CUDA_REFUSES_CAPTURES set, no capture
 * ends well. Functions that are not here are made by build.py: they write "call NAME" and succeed.
 * Signatures: the headers of the wheel nvidia-cuda-runtime.
 */
#include <driver_types.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef cudaError_t Status;
typedef struct { unsigned x, y, z; } Extent;

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static int capturing;

void stand_in_note(const char *kind, const char *what, size_t bytes) {
    static FILE *file;
    pthread_mutex_lock(&guard);
    if (!file) {
        const char *path = getenv("CUDA_CALLS");
        file = fopen(path ? path : "/dev/null", "a");
    }
    fprintf(file, "%s %s", kind, what);
    fprintf(file, bytes ? " %zu\n" : "\n", bytes);
    fflush(file);
    pthread_mutex_unlock(&guard);
}

static void not_while_captured(const char *what) {
    if (capturing) stand_in_note("refused", what, 0);
}

/* The device: an H100 as far as the choice of kernels looks. */

Status cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
Status cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
Status cudaRuntimeGetVersion(int *version) { *version = 13000; return cudaSuccess; }
Status cudaDriverGetVersion(int *version) { *version = 13000; return cudaSuccess; }
const char *cudaGetErrorName(Status status) { return status ? "cudaErrorOfTheStandIn" : "cudaSuccess"; }
const char *cudaGetErrorString(Status status) { return status ? "refused by the stand-in" : "no error"; }

Status cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    memset(found, 0, sizeof *found);
    strcpy(found->name, "stand-in");
    found->major = 9;
    found->multiProcessorCount = 132;
    found->totalGlobalMem = 80ull << 30;
    found->l2CacheSize = 50 << 20;
    found->warpSize = 32;
    found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
    found->maxThreadsDim[2] = 64;
    found->maxThreadsPerMultiProcessor = 2048;
    found->maxGridSize[0] = 2147483647;
    found->maxGridSize[1] = found->maxGridSize[2] = 65535;
    found->sharedMemPerBlock = 49152;
    found->sharedMemPerBlockOptin = 232448;
    found->sharedMemPerMultiprocessor = 233472;
    found->regsPerBlock = found->regsPerMultiprocessor = 65536;
    return cudaSuccess;
}

Status cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
    switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
    case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
    default: *value = 0;
    }
    return cudaSuccess;
}

/* Memory */

static void *zeroed(size_t bytes) {
    void *memory = aligned_alloc(256, (bytes / 256 + 1) * 256);
    return memory ? memset(memory, 0, bytes) : NULL;
}

static Status allocated(const char *call, void **memory, size_t bytes) {
    not_while_captured(call);
    stand_in_note("allocate", call, bytes);
    *memory = zeroed(bytes);
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

static Status released(const char *call, void *memory) {
    not_while_captured(call);
    free(memory);
    return cudaSuccess;
}

Status cudaMalloc(void **memory, size_t bytes) { return allocated("cudaMalloc", memory, bytes); }
Status cudaMallocHost(void **memory, size_t bytes) { return allocated("cudaMallocHost", memory, bytes); }
Status cudaHostAlloc(void **memory, size_t bytes, unsigned flags) { return allocated("cudaHostAlloc", memory, bytes); }
Status cudaFree(void *memory) { return released("cudaFree", memory); }
Status cudaFreeHost(void *memory) { return released("cudaFreeHost", memory); }
Status cudaFreeAsync(void *memory, cudaStream_t stream) { free(memory); return cudaSuccess; }
Status cudaMallocFromPoolAsync(void **memory, size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
    *memory = zeroed(bytes);
    return cudaSuccess;
}
Status cudaMemGetInfo(size_t *unused, size_t *total) { *unused = 70ull << 30; *total = 80ull << 30; return cudaSuccess; }
Status cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *memory) {
    memset(found, 0, sizeof *found);
    found->type = cudaMemoryTypeDevice;
    found->devicePointer = (void *)memory;
    return cudaSuccess;
}
Status cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr which, void *value) {
    *(unsigned long long *)value = 0;
    return cudaSuccess;
}

/* Copies */

static const char *ways[] = {"host-to-host", "host-to-device", "device-to-host", "device-to-device", "either-way"};

Status cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind way, cudaStream_t stream) {
    stand_in_note("copy", ways[way], bytes);
    memmove(to, from, bytes);
    return cudaSuccess;
}
Status cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind way) {
    not_while_captured("cudaMemcpy");
    return cudaMemcpyAsync(to, from, bytes, way, NULL);
}
Status cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t bytes, size_t rows,
                         enum cudaMemcpyKind way, cudaStream_t stream) {
    stand_in_note("copy", ways[way], bytes * rows);
    for (size_t row = 0; row < rows; row++) memmove((char *)to + row * to_pitch, (char *)from + row * from_pitch, bytes);
    return cudaSuccess;
}
Status cudaMemcpyFromSymbol(void *to, const void *symbol, size_t bytes, size_t at, enum cudaMemcpyKind way) {
    memset(to, 0, bytes);
    return cudaSuccess;
}
Status cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
    stand_in_note("clear", "memory", bytes);
    memset(memory, value, bytes);
    return cudaSuccess;
}
Status cudaMemset(void *memory, int value, size_t bytes) {
    not_while_captured("cudaMemset");
    return cudaMemsetAsync(memory, value, bytes, NULL);
}

/* Streams, events, graphs */

static Status handle(void *made) { *(void **)made = malloc(64); return cudaSuccess; }
Status cudaStreamCreate(cudaStream_t *made) { return handle(made); }
Status cudaStreamCreateWithFlags(cudaStream_t *made, unsigned flags) { return handle(made); }
Status cudaEventCreate(cudaEvent_t *made) { return handle(made); }
Status cudaEventCreateWithFlags(cudaEvent_t *made, unsigned flags) { return handle(made); }
Status cudaMemPoolCreate(cudaMemPool_t *made, const struct cudaMemPoolProps *props) { return handle(made); }
Status cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) { return handle(made); }
Status cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) { *ms = 1; return cudaSuccess; }

static Status waited(const char *call) {
    not_while_captured(call);
    stand_in_note("wait", call, 0);
    return cudaSuccess;
}
Status cudaStreamSynchronize(cudaStream_t stream) { return waited("cudaStreamSynchronize"); }
Status cudaDeviceSynchronize(void) { return waited("cudaDeviceSynchronize"); }
Status cudaEventSynchronize(cudaEvent_t event) { return waited("cudaEventSynchronize"); }

Status cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *found) {
    *found = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
Status cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    capturing = 1;
    return cudaSuccess;
}
Status cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *made) {
    capturing = 0;
    if (getenv("CUDA_REFUSES_CAPTURES")) {
        *made = NULL;
        return cudaErrorStreamCaptureInvalidated;
    }
    stand_in_note("capture", "graph", 0);
    return handle(made);
}
Status cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) { stand_in_note("replay", "graph", 0); return cudaSuccess; }
Status cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t work, void *data) { work(data); return cudaSuccess; }

/* Kernels: known by the names that the library registers when it is loaded. */

static struct { const void *function; const char *name; } *kernels;
static int kernel_count, kernel_room;
static __thread struct { Extent grid, block; size_t shared; void *stream; } configured;

void **__cudaRegisterFatBinary(void *binary) { static void *any[8]; return any; }
void __cudaRegisterFunction(void **binary, const char *function, char *symbol, const char *name, int limit, void *tid,
                            void *bid, void *block, void *grid, int *size) {
    if (kernel_count == kernel_room) {
        kernel_room = kernel_room ? 2 * kernel_room : 65536;
        kernels = realloc(kernels, kernel_room * sizeof *kernels);
    }
    kernels[kernel_count].function = function;
    kernels[kernel_count++].name = name;
}
unsigned __cudaPushCallConfiguration(Extent grid, Extent block, size_t shared, void *stream) {
    configured.grid = grid, configured.block = block, configured.shared = shared, configured.stream = stream;
    return 0;
}
Status __cudaPopCallConfiguration(Extent *grid, Extent *block, size_t *shared, void *stream) {
    *grid = configured.grid, *block = configured.block, *shared = configured.shared;
    *(void **)stream = configured.stream;
    return cudaSuccess;
}
Status __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; return cudaSuccess; }

static Status launched(const void *function) {
    const char *name = "unknown";
    for (int at = 0; at < kernel_count; at++)
        if (kernels[at].function == function) name = kernels[at].name;
    stand_in_note("kernel", name, 0);
    return cudaSuccess;
}
Status cudaLaunchKernel(const void *function, Extent grid, Extent block, void **arguments, size_t shared, cudaStream_t s) {
    return launched(function);
}
Status __cudaLaunchKernel(const void *kernel, Extent grid, Extent block, void **arguments, size_t shared, cudaStream_t s) {
    return launched(kernel);
}
Status cudaLaunchCooperativeKernel(const void *kernel, Extent grid, Extent block, void **arguments, size_t shared,
                                   cudaStream_t stream) {
    return launched(kernel);
}
Status cudaLaunchKernelExC(const void *configuration, const void *kernel, void **arguments) { return launched(kernel); }
Status cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 32;
    found->binaryVersion = found->ptxVersion = 90;
    return cudaSuccess;
}
Status cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads,
                                                              size_t shared, unsigned flags) {
    *blocks = 2;
    return cudaSuccess;
}
Status cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned version, unsigned long long flags,
                                        enum cudaDriverEntryPointQueryResult *result) {
    *found = NULL;
    if (result) *result = cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
