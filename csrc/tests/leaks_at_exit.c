/*
 * What was not freed is looked for when a process ends that has had the engine, and in no other:
 * a sanitizer that is preloaded is in every program that a test starts.
 */
#include <sanitizer/lsan_interface.h>

__attribute__((destructor)) static void look(void)
{
    __lsan_do_leak_check();
}
