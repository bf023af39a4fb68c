/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sandbox.h - after this call the process can compute and talk to whom it already knows; no more.
 *
 * For a process that is about to parse files it does not trust. It keeps: its open descriptors,
 * memory (never executable), threads, clocks. It loses: the file system (Landlock and seccomp), new
 * sockets, other processes, new privileges, core dumps and ptrace. A system call outside the list
 * kills the process; opening a file, which libc sometimes tries by itself, fails with EACCES.
 *
 * seccomp covers all threads; Landlock the calling thread and those it makes later: the threads
 * that parse are to be made after this call. Sources: seccomp(2), landlock(7), libseccomp.
 */
#pragma once

#include <stdbool.h>

#include "proto/base.h"

struct ds_sandbox_report {
    bool landlock, seccomp;
    struct ds_error landlock_reason, seccomp_reason; /* why not, "" where it is */
};

/* 0 with *ret_report telling what holds. Negative errno: not even no_new_privs could be set, or the
 * seccomp filter could not be built or loaded. Sanitizers need files and system calls of their own:
 * in such builds both are left out and the report says so. */
int ds_sandbox_enter(struct ds_sandbox_report *ret_report);
