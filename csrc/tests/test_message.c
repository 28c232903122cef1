/* The one block behind recvmsg, sendmsg, accept and connect. */
#include "../message.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "check.h"

static void the_parts_do_not_overlap_and_data_is_aligned(void)
{
    for (size_t vectors = 0; vectors < 6; vectors++)
        for (size_t control = 0; control < 200; control += 13)
            for (size_t data = 0; data < 300; data += 29) {
                struct ut_message *message = ut_message_new(vectors, control, data);
                CHECK(message != NULL);
                size_t count = vectors > 0 ? vectors : 1;
                CHECK(message->control >= (char *)&message->vectors[count]);
                CHECK(message->data >= message->control + control);
                CHECK_EQ((uintptr_t)message->data % 64, 0);
                /* A write past the block would be ASAN's. */
                memset(message->control, 0xff, control);
                memset(message->data, 0xff, data);
                memset(message->vectors, 0xff, count * sizeof(struct iovec));
                ut_message_free(message);
            }
}

static void a_message_with_data_of_its_own(void)
{
    struct ut_message *message = ut_message_new(0, 0, 100);
    CHECK_EQ(message->header.msg_iovlen, 1);
    CHECK(message->header.msg_iov == message->vectors);
    CHECK(message->vectors[0].iov_base == message->data);
    CHECK_EQ(message->vectors[0].iov_len, 100);
    CHECK(message->header.msg_control == NULL);
    CHECK_EQ(message->header.msg_controllen, 0);
    ut_message_free(message);
}

static void a_message_over_foreign_memory(void)
{
    char first[10], second[20];
    struct ut_message *message = ut_message_new(2, 64, 0);
    ut_message_set_vector(message, 0, first, sizeof first);
    ut_message_set_vector(message, 1, second, sizeof second);
    CHECK_EQ(message->header.msg_iovlen, 2);
    CHECK(message->vectors[1].iov_base == second);
    CHECK_EQ(message->vectors[1].iov_len, 20);
    CHECK(message->header.msg_control == message->control);
    CHECK_EQ(message->header.msg_controllen, 64);
    ut_message_free(message);
}

static void a_message_without_any_data_has_no_vectors(void)
{
    struct ut_message *message = ut_message_new(0, 16, 0);
    CHECK_EQ(message->header.msg_iovlen, 0);
    ut_message_free(message);
}

static void room_for_a_name_until_one_is_set(void)
{
    struct ut_message *message = ut_message_new(1, 0, 0);
    CHECK(message->header.msg_name == &message->name);
    CHECK_EQ(message->header.msg_namelen, sizeof(struct sockaddr_storage));
    CHECK_EQ(message->name_length, sizeof(struct sockaddr_storage));
    CHECK_EQ(ut_message_set_name(message, "abcdef", 6), 0);
    CHECK(memcmp(&message->name, "abcdef", 6) == 0);
    CHECK_EQ(message->header.msg_namelen, 6);
    CHECK_EQ(message->name_length, 6);
    ut_message_free(message);
}

static void an_empty_name_is_none(void)
{
    struct ut_message *message = ut_message_new(1, 0, 0);
    CHECK_EQ(ut_message_set_name(message, "", 0), 0);
    CHECK(message->header.msg_name == NULL);
    CHECK_EQ(message->header.msg_namelen, 0);
    ut_message_free(message);
}

static void a_name_that_is_too_long_is_refused(void)
{
    static char name[sizeof(struct sockaddr_storage) + 1];
    struct ut_message *message = ut_message_new(1, 0, 0);
    CHECK_EQ(ut_message_set_name(message, name, sizeof name), -EINVAL);
    CHECK_EQ(message->header.msg_namelen, sizeof(struct sockaddr_storage));
    CHECK_EQ(ut_message_set_name(message, name, sizeof name - 1), 0);
    ut_message_free(message);
}

static void what_the_kernel_wrote_is_read(void)
{
    struct ut_message_result result;
    struct ut_message *message = ut_message_new(1, 64, 0);
    message->header.msg_namelen = 200; /* longer than the storage: it was cut */
    message->header.msg_controllen = 24;
    message->header.msg_flags = MSG_TRUNC;
    ut_message_read(message, &result);
    CHECK_EQ(result.name_length, 200);
    CHECK_EQ(result.control_length, 24);
    CHECK_EQ(result.flags, MSG_TRUNC);
    ut_message_free(message);

    message = ut_message_new(1, 0, 0); /* no control: never any length */
    message->header.msg_controllen = 99;
    ut_message_read(message, &result);
    CHECK_EQ(result.control_length, 0);
    ut_message_free(message);
}

static void sizes_that_overflow_are_refused(void)
{
    CHECK(ut_message_new(SIZE_MAX / 2, 0, 0) == NULL);
    CHECK(ut_message_new(SIZE_MAX / sizeof(struct iovec), 0, 0) == NULL);
    CHECK(ut_message_new(1, SIZE_MAX, 0) == NULL);
    CHECK(ut_message_new(1, 0, SIZE_MAX - 10) == NULL);
}

static void memory_is_aligned(void)
{
    for (size_t size = 0; size < 300; size += 7) {
        char *memory = ut_memory_new(size);
        CHECK(memory != NULL);
        CHECK_EQ((uintptr_t)memory % 64, 0);
        memset(memory, 0xff, size);
        ut_memory_free(memory);
    }
    ut_memory_free(NULL);
}

int main(void)
{
    RUN(the_parts_do_not_overlap_and_data_is_aligned);
    RUN(a_message_with_data_of_its_own);
    RUN(a_message_over_foreign_memory);
    RUN(a_message_without_any_data_has_no_vectors);
    RUN(room_for_a_name_until_one_is_set);
    RUN(an_empty_name_is_none);
    RUN(a_name_that_is_too_long_is_refused);
    RUN(what_the_kernel_wrote_is_read);
    RUN(sizes_that_overflow_are_refused);
    RUN(memory_is_aligned);
    return CHECK_SUMMARY();
}
