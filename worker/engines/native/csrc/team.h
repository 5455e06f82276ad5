/* The threads that compute together. Idle ones sleep; at a barrier they spin for a moment and then
 * yield, so that on a busy machine nobody burns the time of the one they wait for. */
#ifndef MILLPOND_TEAM_H
#define MILLPOND_TEAM_H
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

enum { MAX_THREADS = 256, SPINS = 1000 };

struct member {
    int64_t number;
    uint64_t last_call;
};

static struct {
    pthread_mutex_t one_call, lock;
    pthread_cond_t called;
    int64_t members; /* threads made so far, besides callers */
    struct member member[MAX_THREADS];
    /* The call under way: */
    uint64_t call;
    int64_t threads;
    void (*work)(void *);
    void *argument;
    _Alignas(64) atomic_llong next;
    _Alignas(64) atomic_llong arrived;
    _Alignas(64) atomic_ullong epoch;
} team = {.one_call = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .called = PTHREAD_COND_INITIALIZER};

/* Tell the processor that this thread only waits. */
static inline void relax(void) {
#ifdef __aarch64__
    __asm__ volatile("yield");
#else
    __builtin_ia32_pause();
#endif
}

/* This thread's number in the call under way. */
static _Thread_local int64_t thread_number;

/* The next task of the loop under way; each loop ends with `meet`. */
static inline int64_t take_task(void) {
    return atomic_fetch_add_explicit(&team.next, 1, memory_order_relaxed);
}

/* Share out 0 to count - 1 between the threads, some at a time; follow it by `meet`. */
#define FOR_EACH(i, count) \
    for (int64_t some = ((count) + 8 * team.threads - 1) / (8 * team.threads), first; \
         (first = take_task() * some) < (count);) \
        for (int64_t i = first; i < (count) && i < first + some; i++)

/* Wait until all threads of the call are here. */
static void meet(void) {
    unsigned long long epoch = atomic_load_explicit(&team.epoch, memory_order_acquire);
    if (atomic_fetch_add_explicit(&team.arrived, 1, memory_order_acq_rel) + 1 == team.threads) {
        atomic_store_explicit(&team.arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team.next, 0, memory_order_relaxed);
        atomic_store_explicit(&team.epoch, epoch + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team.epoch, memory_order_acquire) == epoch; spins++) {
        if (spins < SPINS) relax();
        else sched_yield();
    }
}

static void *serve(void *argument) {
    struct member *me = argument;
    thread_number = me->number;
    for (;;) {
        pthread_mutex_lock(&team.lock);
        while (team.call == me->last_call) pthread_cond_wait(&team.called, &team.lock);
        me->last_call = team.call;
        int wanted = me->number < team.threads;
        pthread_mutex_unlock(&team.lock);
        if (wanted) {
            team.work(team.argument);
            meet();
        }
    }
    return NULL;
}

/* Run work(argument) in that many threads, this one among them. One call at a time. */
static void run_team(int64_t threads, void (*work)(void *), void *argument) {
    pthread_mutex_lock(&team.one_call);
    pthread_mutex_lock(&team.lock);
    while (team.members + 1 < threads && team.members + 1 < MAX_THREADS) {
        struct member *next = team.member + team.members;
        pthread_t thread;
        next->number = team.members + 1;
        next->last_call = team.call;
        if (pthread_create(&thread, NULL, serve, next)) break;
        pthread_detach(thread);
        team.members++;
    }
    team.threads = threads < team.members + 1 ? threads : team.members + 1;
    team.work = work;
    team.argument = argument;
    team.call++;
    pthread_cond_broadcast(&team.called);
    pthread_mutex_unlock(&team.lock);
    work(argument);
    meet();
    pthread_mutex_unlock(&team.one_call);
}

#endif
