/* Takes the GPU from the process that it is loaded into: run.sh does that to pxvm.
 *
 * CUDA's driver loads the library that CUDA_INJECTION64_PATH names and calls InitializeInjection:
 * the way by which profilers come in. Some seconds later a kernel of ours runs in the process's own
 * context:
 *
 *   LOSE=store   it stores where no memory is, and the context is lost;
 *   LOSE=spin    it fills the card and never ends, so that nothing else does.
 *
 *   cc -Wall -Wextra -O1 -shared -fPIC -o lose.so lose.c -ldl -lpthread
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char PTX[] =
    ".version 6.3\n"
    ".target sm_75\n"
    ".address_size 64\n"
    ".visible .entry store() {\n"
    "    .reg .u64 %a;\n"
    "    .reg .u32 %v;\n"
    "    mov.u64 %a, 16;\n"
    "    mov.u32 %v, 1;\n"
    "    st.volatile.global.u32 [%a], %v;\n"
    "    ret;\n"
    "}\n"
    ".visible .entry spin() {\n"
    "again:\n"
    "    nanosleep.u32 1000;\n"
    "    bra again;\n"
    "}\n";

static void *driver;

/* A function of the driver's, and what it answered when that is not zero. */
static void *function(const char *name) {
    void *address = dlsym(driver, name);
    if (!address) {
        fprintf(stderr, "lose: the driver has no %s\n", name);
        exit(99);
    }
    return address;
}

static void must(const char *call, int result) {
    if (result) {
        fprintf(stderr, "lose: %s failed with %d\n", call, result);
        exit(99);
    }
}

static void *lose(void *arg) {
    const char *how = getenv("LOSE"), *after = getenv("LOSE_AFTER");
    (void)arg;
    sleep(after ? (unsigned)atoi(after) : 5);
    driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!driver) {
        fprintf(stderr, "lose: %s\n", dlerror());
        exit(99);
    }
    int (*get)(int *, int) = (int (*)(int *, int))function("cuDeviceGet");
    int (*retain)(void **, int) = (int (*)(void **, int))function("cuDevicePrimaryCtxRetain");
    int (*enter)(void *) = (int (*)(void *))function("cuCtxSetCurrent");
    int (*load)(void **, const void *) = (int (*)(void **, const void *))function("cuModuleLoadData");
    int (*find)(void **, void *, const char *) =
        (int (*)(void **, void *, const char *))function("cuModuleGetFunction");
    int (*stream)(void **, unsigned) = (int (*)(void **, unsigned))function("cuStreamCreate");
    int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                  void *, void **, void **) =
        (int (*)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                 void *, void **, void **))function("cuLaunchKernel");
    int device;
    void *context, *module, *kernel, *queue;
    must("cuDeviceGet", get(&device, 0));
    must("cuDevicePrimaryCtxRetain", retain(&context, device));
    must("cuCtxSetCurrent", enter(context));
    must("cuModuleLoadData", load(&module, PTX));
    must("cuModuleGetFunction", find(&kernel, module, how));
    must("cuStreamCreate", stream(&queue, 1));
    unsigned blocks = strcmp(how, "spin") ? 1 : 65535, threads = strcmp(how, "spin") ? 1 : 1024;
    must("cuLaunchKernel",
         launch(kernel, blocks, 1, 1, threads, 1, 1, 0, queue, NULL, NULL));
    fprintf(stderr, "lose: launched %s\n", how);
    return NULL;
}

/* Called while the driver is being initialised: the thread waits until that is over. */
int InitializeInjection(void) {
    pthread_t thread;
    fprintf(stderr, "lose: loaded\n");
    if (!getenv("LOSE") || pthread_create(&thread, NULL, lose, NULL)) return 0;
    pthread_detach(thread);
    return 1;
}
