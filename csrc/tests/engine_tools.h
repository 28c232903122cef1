/* What most tests of the engine need. */
#ifndef UT_TESTS_ENGINE_TOOLS_H
#define UT_TESTS_ENGINE_TOOLS_H

#include "check.h"
#include "fake_kernel.h"

#include "../prep.h"

#define MS 1000000LL /* ns */

/* Group 0: 4 buffers of one page, group 1: 2 of two pages, group 2: 1 of one page. */
extern const struct ut_config tools_config;

/* An engine on a fresh fake kernel, with these sizes. */
struct ut_engine *tools_open(unsigned sq_entries, unsigned cq_entries);

/* wait(), with its two counts taken apart. */
struct tools_batch {
    int64_t answer; /* as it came; < 0: -errno */
    unsigned seen, records;
};
struct tools_batch tools_wait(struct ut_engine *engine, int64_t timeout_ns);

/* wait() until something comes, as Python calls it: again after -EINTR. */
struct tools_batch tools_wait_through(struct ut_engine *engine, int64_t timeout_ns);

/* Waits as Python does until `ns` have passed, and calls `look`, if there is one, after each;
 * how many records came. */
unsigned tools_run_for(struct ut_engine *engine, uint64_t ns, void (*look)(void));

/* An accept that goes on until it is cancelled or a cqe has no F_MORE, by the kernel's own
 * poll: the product has none, because that poll is exclusive. */
int tools_accept_multishot(struct ut_engine *engine, int fd, int flags);

/* The first record of `slot` in the last batch, or NULL. */
const struct ut_record *tools_record(const struct ut_engine *engine, int slot);

/* The last record of `slot`, waiting for it as long as it takes. */
struct ut_record tools_await(struct ut_engine *engine, int slot);

/* True if the record's data is what the fake sends on `fd`. */
bool tools_data_is(const struct ut_engine *engine, const struct ut_record *record, int fd);

/* Ends the last batch; then everything must be home, and the engine closes. */
void tools_close(struct ut_engine *engine);

/* Closes an engine that has operations in flight, keeps the pointer from the leak
 * checker's report, and gives the memory back to the fake. */
void tools_close_leaking(struct ut_engine *engine);
#define TOOLS_LEAKED_MAX 64
extern struct ut_engine *tools_leaked[TOOLS_LEAKED_MAX];

struct ut_statistics tools_statistics(const struct ut_engine *engine);

#endif
