#include "fail_alloc.h"

#include <errno.h>
#include <limits.h>
#include <stddef.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
int __real_posix_memalign(void **memory, size_t alignment, size_t size);
void __real_free(void *memory);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
int __wrap_posix_memalign(void **memory, size_t alignment, size_t size);
void __wrap_free(void *memory);

#define ALWAYS UINT_MAX

static unsigned failing; /* which one; 0: none */
static unsigned made;
static int happened;
static int64_t live;

void fail_alloc_at(unsigned nth)
{
    __atomic_store_n(&made, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&happened, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&failing, nth, __ATOMIC_RELEASE);
}

void fail_alloc_always(void)
{
    fail_alloc_at(ALWAYS);
}

int fail_alloc_happened(void)
{
    return __atomic_load_n(&happened, __ATOMIC_RELAXED);
}

unsigned fail_alloc_count(void)
{
    return __atomic_load_n(&made, __ATOMIC_RELAXED);
}

int64_t fail_alloc_live(void)
{
    return __atomic_load_n(&live, __ATOMIC_RELAXED);
}

static int fails(void)
{
    unsigned number = __atomic_add_fetch(&made, 1, __ATOMIC_RELAXED);
    unsigned nth = __atomic_load_n(&failing, __ATOMIC_ACQUIRE);
    if (nth != ALWAYS && number != nth)
        return 0;
    __atomic_store_n(&happened, 1, __ATOMIC_RELAXED);
    return 1;
}

static void *counted(void *memory)
{
    if (memory != NULL)
        __atomic_add_fetch(&live, 1, __ATOMIC_RELAXED);
    return memory;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : counted(__real_malloc(size));
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : counted(__real_calloc(count, size));
}

void *__wrap_realloc(void *memory, size_t size)
{
    if (fails())
        return NULL;
    void *moved = __real_realloc(memory, size);
    return memory == NULL ? counted(moved) : moved;
}

int __wrap_posix_memalign(void **memory, size_t alignment, size_t size)
{
    if (fails())
        return ENOMEM;
    int error = __real_posix_memalign(memory, alignment, size);
    if (error == 0)
        (void)counted(*memory);
    return error;
}

void __wrap_free(void *memory)
{
    if (memory != NULL)
        __atomic_sub_fetch(&live, 1, __ATOMIC_RELAXED);
    __real_free(memory);
}
