/* Provided-buffer rings: layout, leases, wrap, and what must not happen. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "fake_kernel.h"

#define ENTRIES 4
#define SIZE 8192u

static struct ut_ring ring;
static struct ut_bufring bufring;
static char *pool;

/* A ring, a pool with one page before the buffers, and group 1 in it. */
static void set_up(void)
{
    void *memory;
    fake_reset();
    CHECK_EQ(ut_ring_open(&ring, &ut_kernel_fake, 8, 8, 8), 0);
    CHECK_EQ(ut_kernel_fake.allocate(&memory, 4096 + ENTRIES * SIZE, 0), 0);
    pool = memory;
    CHECK_EQ(ut_bufring_open(&bufring, &ring, 1, ENTRIES, SIZE, pool, 4096), 0);
}

static void tear_down(void)
{
    ut_ring_close(&ring);
    ut_bufring_close(&bufring, &ut_kernel_fake);
    ut_bufring_close(&bufring, &ut_kernel_fake); /* twice does no harm */
    ut_kernel_fake.unmap(pool, 4096 + ENTRIES * SIZE);
}

/* The kernel takes the next buffer, and we hear of it. */
static uint32_t take_and_lease(void)
{
    const struct io_uring_buf *buffer = kring_take_buffer(&fake_ring, 1);
    CHECK(buffer != NULL);
    CHECK(buffer->addr == (uintptr_t)pool + 4096 + buffer->bid * SIZE);
    CHECK_EQ(buffer->len, SIZE);
    uint32_t offset = ut_bufring_lease(&bufring, buffer->bid);
    CHECK((uintptr_t)pool + offset == buffer->addr);
    return offset;
}

static void a_new_ring_is_full_and_page_aligned(void)
{
    set_up();
    CHECK_EQ(kring_buffers_home(&fake_ring, 1), ENTRIES);
    for (unsigned i = 0; i < ENTRIES; i++) {
        CHECK_EQ(fake_ring.groups[1]->ring[i].bid, i);
        CHECK_EQ(fake_ring.groups[1]->ring[i].addr % 4096, 0);
    }
    CHECK(kring_take_buffer(&fake_ring, 0) == NULL); /* another group has none of them */
    tear_down();
}

static void a_returned_buffer_is_home_after_the_commit_only(void)
{
    set_up();
    uint32_t offset = take_and_lease();
    CHECK_EQ(bufring.leased, 1);
    ut_bufring_return(&bufring, offset);
    CHECK_EQ(bufring.leased, 0);
    CHECK_EQ(kring_buffers_home(&fake_ring, 1), ENTRIES - 1);
    ut_bufring_commit(&bufring);
    CHECK_EQ(kring_buffers_home(&fake_ring, 1), ENTRIES);
    tear_down();
}

static void a_ring_runs_dry_and_fills_in_another_order(void)
{
    set_up();
    uint32_t offsets[ENTRIES];
    for (unsigned i = 0; i < ENTRIES; i++)
        offsets[i] = take_and_lease();
    CHECK(kring_take_buffer(&fake_ring, 1) == NULL);
    CHECK_EQ(bufring.leased, ENTRIES);
    for (unsigned i = ENTRIES; i-- > 0;)
        ut_bufring_return(&bufring, offsets[i]);
    ut_bufring_commit(&bufring);
    for (unsigned i = ENTRIES; i-- > 0;)
        CHECK_EQ(take_and_lease(), offsets[i]);
    for (unsigned i = 0; i < ENTRIES; i++)
        ut_bufring_return(&bufring, offsets[i]);
    ut_bufring_commit(&bufring);
    CHECK_EQ(kring_buffers_home(&fake_ring, 1), ENTRIES);
    tear_down();
}

static void the_tail_wraps_at_16_bits(void)
{
    set_up();
    for (unsigned i = 0; i < 70000; i++) {
        uint32_t offset = take_and_lease();
        ut_bufring_return(&bufring, offset);
        ut_bufring_commit(&bufring);
    }
    CHECK(bufring.tail < 10000);
    CHECK_EQ(kring_buffers_home(&fake_ring, 1), ENTRIES);
    tear_down();
}

static void a_group_may_have_one_buffer(void)
{
    set_up();
    struct ut_bufring single;
    CHECK_EQ(ut_bufring_open(&single, &ring, 2, 1, 4096, pool, 0), 0);
    for (unsigned i = 0; i < 5; i++) {
        const struct io_uring_buf *buffer = kring_take_buffer(&fake_ring, 2);
        CHECK(buffer != NULL && buffer->addr == (uintptr_t)pool);
        CHECK(kring_take_buffer(&fake_ring, 2) == NULL);
        ut_bufring_return(&single, ut_bufring_lease(&single, 0));
        ut_bufring_commit(&single);
    }
    ut_ring_close(&ring);
    ut_bufring_close(&single, &ut_kernel_fake);
    tear_down();
}

static void broken_books_abort(void)
{
    set_up();
    CHECK_ABORTS(ut_bufring_lease(&bufring, ENTRIES), "bid < bufring->entries");
    CHECK_ABORTS(ut_bufring_return(&bufring, 4096), "bufring->leased > 0");
    uint32_t offset = take_and_lease();
    CHECK_ABORTS(ut_bufring_return(&bufring, 4096 + ENTRIES * SIZE), "bid < bufring->entries");
    CHECK_ABORTS(ut_bufring_return(&bufring, 0), "bid < bufring->entries");
    ut_bufring_return(&bufring, offset);
    ut_bufring_commit(&bufring);
    tear_down();
}

static void bad_sizes_abort(void)
{
    set_up();
    struct ut_bufring other;
    CHECK_ABORTS(ut_bufring_open(&other, &ring, 2, 3, SIZE, pool, 0), "entries & (entries - 1)");
    CHECK_ABORTS(ut_bufring_open(&other, &ring, 2, 65536, SIZE, pool, 0), "entries <= 32768");
    CHECK_ABORTS(ut_bufring_open(&other, &ring, 2, 0, SIZE, pool, 0), "entries > 0");
    CHECK_ABORTS(ut_bufring_open(&other, &ring, 2, 4, 1000, pool, 0), "buffer_size %");
    CHECK_ABORTS(ut_bufring_open(&other, &ring, 2, 4, SIZE, pool, 64), "pool_offset %");
    tear_down();
}

static void a_failing_call_leaves_nothing_behind(void)
{
    set_up();
    struct ut_bufring other;
    unsigned mapped = fake.mappings;
    for (unsigned nth = 1; nth <= 2; nth++) { /* allocate; register */
        fake.fail_call = fake.calls + nth;
        CHECK_EQ(ut_bufring_open(&other, &ring, 2, 1, 4096, pool, 0), -ENOMEM);
        CHECK_EQ(fake.mappings, mapped);
    }
    /* A group that is there already is refused by the kernel. */
    CHECK_EQ(ut_bufring_open(&other, &ring, 1, 1, 4096, pool, 0), -EEXIST);
    CHECK_EQ(fake.mappings, mapped);
    tear_down();
}

int main(void)
{
    check_after_each = fake_check_books;
    RUN(a_new_ring_is_full_and_page_aligned);
    RUN(a_returned_buffer_is_home_after_the_commit_only);
    RUN(a_ring_runs_dry_and_fills_in_another_order);
    RUN(the_tail_wraps_at_16_bits);
    RUN(a_group_may_have_one_buffer);
    RUN(broken_books_abort);
    RUN(bad_sizes_abort);
    RUN(a_failing_call_leaves_nothing_behind);
    return CHECK_SUMMARY();
}
