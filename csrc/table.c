#include "table.h"

#include "beside.h"

static const struct ut_table functions = {
    .version = UT_TABLE_VERSION,
    .recv = ut_prep_recv,
    .send = ut_prep_send,
    .try_send = ut_try_send,
};

const struct ut_table *ut_table(void)
{
    return &functions;
}
