/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/sandbox.h"

#include <fcntl.h>
#include <linux/landlock.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define BUILT_WITH_SANITIZER 1
#else
#define BUILT_WITH_SANITIZER 0
#endif

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#endif

/* Rights each Landlock ABI knows; asking an older kernel for more is refused. */
static uint64_t landlock_rights(int abi)
{
    uint64_t rights = (UINT64_C(1) << 13) - 1; /* ABI 1: execute .. make_sym */

    if (abi >= 2)
        rights |= UINT64_C(1) << 13; /* refer */
    if (abi >= 3)
        rights |= UINT64_C(1) << 14; /* truncate */
    if (abi >= 5)
        rights |= UINT64_C(1) << 15; /* ioctl on devices */
    return rights;
}

/* A ruleset that handles every right and allows none. */
static int deny_file_system(struct ds_error *error)
{
    struct landlock_ruleset_attr attributes = { 0 };
    ds_cleanup(ds_close_p) int fd = -1;
    int abi;

    abi = (int) syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (abi < 0)
        return ds_error_set(error, -errno, "this kernel has no Landlock (%s)", strerror(errno));
    attributes.handled_access_fs = landlock_rights(abi);
    fd = (int) syscall(SYS_landlock_create_ruleset, &attributes,
                       sizeof attributes.handled_access_fs, 0);
    if (fd < 0 || syscall(SYS_landlock_restrict_self, fd, 0) < 0)
        return ds_error_set(error, -errno, "Landlock refused (%s)", strerror(errno));
    return 0;
}

/* Grouped by purpose; nothing here can reach a file, a socket or a process not yet open. */
static const int allowed[] = {
    /* memory */
    SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(brk), SCMP_SYS(mlock),
    SCMP_SYS(mlock2), SCMP_SYS(munlock), SCMP_SYS(mincore), SCMP_SYS(msync), SCMP_SYS(mbind),
    SCMP_SYS(set_mempolicy), SCMP_SYS(get_mempolicy), SCMP_SYS(membarrier),
    /* threads */
    SCMP_SYS(futex), SCMP_SYS(set_robust_list), SCMP_SYS(get_robust_list), SCMP_SYS(rseq),
    SCMP_SYS(set_tid_address), SCMP_SYS(sched_yield), SCMP_SYS(sched_getaffinity),
    SCMP_SYS(sched_setaffinity), SCMP_SYS(sched_getparam), SCMP_SYS(sched_getscheduler),
    SCMP_SYS(getcpu), SCMP_SYS(gettid), SCMP_SYS(getpid), SCMP_SYS(exit), SCMP_SYS(exit_group),
    /* open descriptors */
    SCMP_SYS(read), SCMP_SYS(readv), SCMP_SYS(pread64), SCMP_SYS(preadv), SCMP_SYS(write),
    SCMP_SYS(writev), SCMP_SYS(recvmsg), SCMP_SYS(sendmsg), SCMP_SYS(recvfrom), SCMP_SYS(sendto),
    SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(eventfd2), SCMP_SYS(close), SCMP_SYS(dup),
    SCMP_SYS(fcntl), SCMP_SYS(fstat), SCMP_SYS(lseek), SCMP_SYS(fadvise64), SCMP_SYS(readahead),
    SCMP_SYS(getsockopt),
    /* time, chance */
    SCMP_SYS(clock_gettime), SCMP_SYS(clock_getres), SCMP_SYS(clock_nanosleep), SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday), SCMP_SYS(getrandom),
    /* signals: to return from them, and for abort() */
    SCMP_SYS(rt_sigreturn), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigaction), SCMP_SYS(sigaltstack),
    SCMP_SYS(restart_syscall)
};

/* What libc tries by itself and can do without. */
static const struct {
    int call;
    uint32_t action;
} refused[] = {
    { SCMP_SYS(open), SCMP_ACT_ERRNO(EACCES) },
    { SCMP_SYS(openat), SCMP_ACT_ERRNO(EACCES) },
    { SCMP_SYS(openat2), SCMP_ACT_ERRNO(EACCES) },
    { SCMP_SYS(readlink), SCMP_ACT_ERRNO(EACCES) },
    { SCMP_SYS(readlinkat), SCMP_ACT_ERRNO(EACCES) },
    { SCMP_SYS(access), SCMP_ACT_ERRNO(EACCES) },
    { SCMP_SYS(faccessat), SCMP_ACT_ERRNO(EACCES) },
    { SCMP_SYS(stat), SCMP_ACT_ERRNO(EACCES) },
    { SCMP_SYS(statx), SCMP_ACT_ERRNO(EACCES) },
    { SCMP_SYS(ioctl), SCMP_ACT_ERRNO(ENOTTY) },
    { SCMP_SYS(uname), SCMP_ACT_ERRNO(EPERM) },
    { SCMP_SYS(sysinfo), SCMP_ACT_ERRNO(EPERM) },
    { SCMP_SYS(clone3), SCMP_ACT_ERRNO(ENOSYS) }, /* then libc uses clone, which can be judged */
};

/* Calls whose arguments decide. */
static int add_conditional(scmp_filter_ctx filter)
{
    const struct {
        int call;
        struct scmp_arg_cmp when, and;
    } rules[] = {
        { SCMP_SYS(mmap), SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0) },
        { SCMP_SYS(mprotect), SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0) },
        { SCMP_SYS(clone), SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD | CLONE_VM | CLONE_NEWUSER,
                                   CLONE_THREAD | CLONE_VM) },
        { SCMP_SYS(newfstatat), SCMP_A3(SCMP_CMP_EQ, AT_EMPTY_PATH) },
        { SCMP_SYS(prctl), SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME) },
        { SCMP_SYS(prctl), SCMP_A0(SCMP_CMP_EQ, PR_SET_VMA) },
        { SCMP_SYS(prlimit64), SCMP_A2(SCMP_CMP_EQ, 0) },
        { SCMP_SYS(tgkill), SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t) getpid()) },
        /* a thread may stand back behind the others, nothing else */
        { SCMP_SYS(sched_setscheduler), SCMP_A0(SCMP_CMP_EQ, 0), SCMP_A1(SCMP_CMP_EQ, SCHED_IDLE) },
        { SCMP_SYS(setpriority), SCMP_A0(SCMP_CMP_EQ, PRIO_PROCESS), SCMP_A1(SCMP_CMP_EQ, 0) },
    };

    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        struct scmp_arg_cmp both[] = { rules[i].when, rules[i].and };
        unsigned n = rules[i].and.op == 0 ? 1 : 2; /* 0 is no comparison */
        int r = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, rules[i].call, n, both);

        if (r < 0)
            return r;
    }
    return 0;
}

static int fill_filter(scmp_filter_ctx filter)
{
    int r;

    for (size_t i = 0; i < sizeof allowed / sizeof allowed[0]; i++) {
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
        if (r < 0)
            return r;
    }
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        r = seccomp_rule_add(filter, refused[i].action, refused[i].call, 0);
        if (r < 0)
            return r;
    }
    r = add_conditional(filter);
    if (r < 0)
        return r;
    /* every thread there is, or none: a thread without the filter would be a way out */
    r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    if (r < 0)
        return r;
    return seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* binary tree */
}

static int filter_calls(void)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    int r;

    if (!filter)
        return -ENOMEM;
    r = fill_filter(filter);
    if (r == 0)
        r = seccomp_load(filter);
    seccomp_release(filter);
    return r;
}

int ds_sandbox_enter(struct ds_sandbox_report *ret_report)
{
    struct ds_sandbox_report report = { 0 };
    int r;

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    if (BUILT_WITH_SANITIZER) {
        (void) ds_error_set(&report.landlock_reason, 0, "built with a sanitizer");
        report.seccomp_reason = report.landlock_reason;
        *ret_report = report;
        return 0;
    }
    report.landlock = deny_file_system(&report.landlock_reason) == 0;
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return -errno;
    r = filter_calls();
    if (r < 0)
        return r;
    report.seccomp = true;
    *ret_report = report;
    return 0;
}
