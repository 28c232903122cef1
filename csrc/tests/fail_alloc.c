#include "fail_alloc.h"

#include <errno.h>
#include <limits.h>
#include <stddef.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
int __real_posix_memalign(void **memory, size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
int __wrap_posix_memalign(void **memory, size_t alignment, size_t size);

#define ALWAYS UINT_MAX

static unsigned countdown;
static int happened;

void fail_alloc_at(unsigned nth)
{
    countdown = nth;
    happened = 0;
}

void fail_alloc_always(void)
{
    fail_alloc_at(ALWAYS);
}

int fail_alloc_happened(void)
{
    return happened;
}

static int fails(void)
{
    if (countdown == 0 || (countdown != ALWAYS && --countdown > 0))
        return 0;
    happened = 1;
    return 1;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *memory, size_t size)
{
    return fails() ? NULL : __real_realloc(memory, size);
}

int __wrap_posix_memalign(void **memory, size_t alignment, size_t size)
{
    return fails() ? ENOMEM : __real_posix_memalign(memory, alignment, size);
}
