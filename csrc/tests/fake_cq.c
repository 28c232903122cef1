/* The fake's CQ, with what does not fit into it, and its provided buffers. */
#include "fake_kernel.h"

#include <stdlib.h>

static struct io_uring_cqe overflow[FAKE_OVERFLOW_MAX];
static unsigned overflow_first, overflow_count;

void fake_cq_reset(void)
{
    overflow_first = overflow_count = 0;
}

bool fake_cq_has_overflow(void)
{
    return overflow_first < overflow_count;
}

/* ---- the CQ --------------------------------------------------------------- */

unsigned fake_cq_ready(void)
{
    const struct io_cqring_offsets *at = &fake_ring.params.cq_off;
    return *fake_at(at->tail) - __atomic_load_n(fake_at(at->head), __ATOMIC_ACQUIRE);
}

bool fake_cq_has_room(void)
{
    return !fake_cq_has_overflow() && fake_cq_ready() < fake_ring.cq_entries;
}

static void write_cqe(const struct io_uring_cqe *cqe)
{
    const struct io_cqring_offsets *at = &fake_ring.params.cq_off;
    struct io_uring_cqe *cqes = (struct io_uring_cqe *)(fake_ring.rings + at->cqes);
    unsigned tail = *fake_at(at->tail);
    cqes[tail & (fake_ring.cq_entries - 1)] = *cqe;
    __atomic_store_n(fake_at(at->tail), tail + 1, __ATOMIC_RELEASE);
}

void fake_cq_post(uint64_t user_data, int32_t res, uint32_t flags)
{
    struct io_uring_cqe cqe = {user_data, res, flags};
    if (fake_cq_has_room()) {
        write_cqe(&cqe);
        return;
    }
    if (overflow_count == FAKE_OVERFLOW_MAX)
        abort();
    overflow[overflow_count++] = cqe;
    fake.overflows++;
}

void fake_cq_flush(void)
{
    while (overflow_first < overflow_count && fake_cq_ready() < fake_ring.cq_entries)
        write_cqe(&overflow[overflow_first++]);
    if (overflow_first == overflow_count)
        overflow_first = overflow_count = 0;
}

/* ---- buffers -------------------------------------------------------------- */

/* Looks at what was put back since the last time. */
static void look_at_tail(struct fake_group *group)
{
    uint16_t tail = __atomic_load_n(&group->ring[0].resv, __ATOMIC_ACQUIRE);
    for (; group->tail != tail; group->tail++) {
        const struct io_uring_buf *entry = &group->ring[group->tail & (group->entries - 1)];
        if (entry->bid >= group->entries)
            fake_fault("a buffer id beyond the group");
        else if (group->known[entry->bid] && !group->out[entry->bid])
            fake_fault("a buffer was returned twice");
        if (entry->bid < group->entries) {
            group->known[entry->bid] = true;
            group->out[entry->bid] = false;
        }
    }
    if ((uint16_t)(group->tail - group->head) > group->entries)
        fake_fault("more buffers than entries");
}

unsigned fake_buffers_home(unsigned index)
{
    struct fake_group *group = &fake.groups[index];
    look_at_tail(group);
    return (uint16_t)(group->tail - group->head);
}

const struct io_uring_buf *fake_take_buffer(unsigned index)
{
    struct fake_group *group = &fake.groups[index];
    if (group->ring == NULL)
        return NULL;
    look_at_tail(group);
    if (group->head == group->tail)
        return NULL;
    const struct io_uring_buf *entry = &group->ring[group->head++ & (group->entries - 1)];
    group->out[entry->bid] = true;
    return entry;
}

uint8_t fake_byte(int fd, unsigned index)
{
    return (uint8_t)((unsigned)fd * 7 + index);
}

void fake_fill(uint64_t address, int fd, const char *data, uint32_t size)
{
    uint8_t *memory = (uint8_t *)(uintptr_t)address;
    for (uint32_t i = 0; i < size; i++)
        memory[i] = data != NULL ? (uint8_t)data[i] : fake_byte(fd, i);
}
