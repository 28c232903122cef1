#define _GNU_SOURCE
#include "guard_memory.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096u
/* Bytes of addresses, not of memory: 8 million small requests, or 60,000 of 4 MiB. */
#define RANGE (256ULL << 30)

/* Of a page: the block that has it. */
struct block {
    uint32_t first; /* page */
    /* Of that one: */
    uint32_t size; /* bytes */
    bool open;
};

static char *range;
static struct block *blocks; /* by page */
static size_t next_page = 1;

void __real_free(void *memory);

static void *reserve(size_t size, int protection)
{
    void *memory = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("guard: no addresses");
        abort();
    }
    return memory;
}

static size_t pages_of(size_t size)
{
    return (size + PAGE - 1) / PAGE;
}

static struct block *block_at(const void *memory)
{
    return &blocks[blocks[(size_t)((const char *)memory - range) / PAGE].first];
}

void *guard_take(size_t size, size_t alignment)
{
    if (range == NULL) {
        range = reserve(RANGE, PROT_NONE);
        blocks = reserve(RANGE / PAGE * sizeof *blocks, PROT_READ | PROT_WRITE);
    }
    size_t pages = pages_of(size > 0 ? size : 1);
    if (size > UINT32_MAX || next_page + pages >= RANGE / PAGE) {
        guard_report("no addresses are left for %zu bytes", size);
        abort();
    }
    char *first = range + next_page * PAGE;
    if (mprotect(first, pages * PAGE, PROT_READ | PROT_WRITE) != 0) {
        perror("guard: no memory");
        abort();
    }
    uint32_t at = (uint32_t)next_page;
    for (size_t page = 0; page < pages; page++)
        blocks[at + page].first = at;
    blocks[at].size = size > 0 ? (uint32_t)size : 1;
    blocks[at].open = true;
    next_page += pages + 1;
    return first + pages * PAGE - (size + alignment - 1) / alignment * alignment;
}

bool guard_holds(const void *memory)
{
    return range != NULL && (const char *)memory >= range && (const char *)memory < range + RANGE;
}

bool guard_is_open(const void *memory)
{
    return block_at(memory)->open;
}

size_t guard_size(const void *memory)
{
    return block_at(memory)->size;
}

void guard_retire(void *memory)
{
    struct block *block = block_at(memory);
    block->open = false;
    /* Mapped anew: the memory goes back, and neighbours become one mapping, of which a process
     * may have 65,530. */
    if (mmap(range + (size_t)block->first * PAGE, pages_of(block->size) * PAGE, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) {
        perror("guard: cannot protect");
        abort();
    }
}

void guard_report_list(const char *format, va_list arguments)
{
    char line[512] = "guard: ";
    int length = 7 + vsnprintf(line + 7, sizeof line - 8, format, arguments);
    if (length > (int)sizeof line - 2)
        length = (int)sizeof line - 2;
    line[length++] = '\n';
    const char *path = getenv("UT_GUARD_LOG");
    int fd = path == NULL ? -1 : open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    (void)!write(fd < 0 ? STDERR_FILENO : fd, line, (size_t)length);
    if (fd >= 0)
        close(fd);
}

void guard_report(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    guard_report_list(format, arguments);
    va_end(arguments);
}

void *guard_own(size_t size)
{
    void *own = calloc(1, size);
    if (own == NULL)
        abort();
    return own;
}

void guard_drop(void *own)
{
    __real_free(own);
}
