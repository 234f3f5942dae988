/* Roofline probe: what this machine gives to a program that does nothing but read, or nothing but multiply.

     probe THREADS            then commands on stdin, one JSON object a line on stdout:
     read BYTES BUDGET_MS  -> {"bytes":…,"threads":…,"huge_pages":…,"gb_s":…,"best_gb_s":…,"variants":{…}}
     peak BUDGET_MS        -> {"threads":…,"int8_gmac_s":…,"fma_gmac_s":…,"int8":"vpdpbusd zmm",…}

   read: every thread reads its share of one buffer of BYTES; a variant is static halves or chunks taken
   from a counter, each without and with software prefetch. gb_s is the highest median of a variant,
   best_gb_s the best single pass; GB are 10^9 bytes. A set that fits the caches stays there between
   passes, as weights do between decode steps: ask for the size in question.
   peak: dependent-free chains in registers; multiply-accumulates per second over all threads.

   Threads are made once and pinned; between commands they sleep, inside one they meet in spinning
   barriers, so no thread is made or woken in a timed region. Build: cc -O3 -march=native -pthread. */

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

enum { LINE = 64, CHUNK = 64 << 10, HUGE = 2 << 20, MAX_PASSES = 400, MIN_PASSES = 5, MAX_THREADS = 256 };
typedef long long Vec __attribute__((vector_size(64), may_alias));

typedef enum { IDLE, TOUCH, READ, PEAK, QUIT } Job;

static int num_threads;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static unsigned job_number; /* guarded by mutex */
static Job job;
static double budget_s;

static char *buffer;
static size_t buffer_bytes;
static atomic_size_t next_chunk;
static atomic_int arrived;
static atomic_uint phase;
static atomic_int go_on;
static double started[MAX_THREADS];
static volatile long long sink;

typedef struct { const char *name; int dynamic, ahead; double gb_s[MAX_PASSES]; int passes; } Variant;
static Variant variants[] = {
    {"static", 0, 0, {0}, 0},          {"static, prefetch 1 KiB", 0, 1024, {0}, 0},
    {"static, prefetch 2 KiB", 0, 2048, {0}, 0}, {"chunks", 1, 0, {0}, 0},
    {"chunks, prefetch 1 KiB", 1, 1024, {0}, 0}, {"chunks, prefetch 2 KiB", 1, 2048, {0}, 0},
};
enum { VARIANTS = sizeof variants / sizeof *variants };
static struct { double fma, int8; } peaks[MAX_THREADS]; /* GMAC/s */

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void relax(void) {
#ifdef __x86_64__
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* All threads meet; the last one to come lets the others go. */
static void barrier(void) {
  unsigned mine = atomic_load(&phase);
  if (atomic_fetch_add(&arrived, 1) == num_threads - 1) {
    atomic_store(&arrived, 0);
    atomic_fetch_add(&phase, 1);
  } else {
    while (atomic_load_explicit(&phase, memory_order_acquire) == mine) relax();
  }
}

/* ------------------------------------------------------------------ reading */

static long long read_range(const char *p, const char *end, int ahead) {
  Vec a = {0}, b = {0}, c = {0}, d = {0};
  for (; p + 4 * LINE <= end; p += 4 * LINE) {
    if (ahead)
      for (int line = 0; line < 4; line++) __builtin_prefetch(p + ahead + line * LINE, 0, 3);
    const Vec *v = (const Vec *)p;
    a ^= v[0], b ^= v[1], c ^= v[2], d ^= v[3];
  }
  a ^= b ^ c ^ d;
  return a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
}

static void share(int thread, size_t *first, size_t *last) {
  size_t lines = buffer_bytes / (4 * LINE), n = (size_t)num_threads, t = (size_t)thread;
  *first = lines * t / n * 4 * LINE;
  *last = lines * (t + 1) / n * 4 * LINE;
}

static void read_pass(int thread, const Variant *v) {
  long long sum = 0;
  if (!v->dynamic) {
    size_t first, last;
    share(thread, &first, &last);
    sum = read_range(buffer + first, buffer + last, v->ahead);
  } else {
    size_t chunks = (buffer_bytes + CHUNK - 1) / CHUNK, i;
    while ((i = atomic_fetch_add_explicit(&next_chunk, 1, memory_order_relaxed)) < chunks) {
      size_t last = (i + 1) * CHUNK;
      sum ^= read_range(buffer + i * CHUNK, buffer + (last < buffer_bytes ? last : buffer_bytes), v->ahead);
    }
  }
  sink ^= sum;
}

/* A thread may lose its core right behind a barrier: a pass lasts from the first thread's start. */
static double earliest(void) {
  double first = started[0];
  for (int t = 1; t < num_threads; t++)
    if (started[t] < first) first = started[t];
  return first;
}

/* Passes of one variant until its share of the time is used; the first one only warms. */
static void read_variant(int thread, Variant *v) {
  double until = 0;
  if (thread == 0) v->passes = -1, until = now() + budget_s / VARIANTS;
  do {
    barrier();
    if (thread == 0) atomic_store(&next_chunk, 0);
    barrier();
    started[thread] = now();
    read_pass(thread, v);
    barrier();
    if (thread == 0) {
      double end = now(), start = earliest();
      if (v->passes >= 0) v->gb_s[v->passes] = (double)buffer_bytes / (end - start) / 1e9;
      v->passes++;
      atomic_store(&go_on, v->passes < MAX_PASSES && (end < until || v->passes < MIN_PASSES));
    }
    barrier();
  } while (atomic_load(&go_on));
}

/* ------------------------------------------------------------------ multiplying */

/* Twelve accumulators as variables of their own: an array of vectors would live on the stack. The empty
   asm keeps each one in its register and the compiler from computing the result beforehand. */
enum { CHAINS = 12, ROUNDS = 100000 };
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)

#if defined(__AVX512VNNI__)
static const char *int8_name = "vpdpbusd zmm";
static double int8_macs(void) {
  __m512i x = _mm512_set1_epi8(1);
#define START(c) __m512i a##c = _mm512_setzero_si512();
#define STEP(c) a##c = _mm512_dpbusd_epi32(a##c, x, x); __asm__ volatile("" : "+v"(a##c));
#define FINISH(c) sink ^= _mm512_reduce_add_epi32(a##c);
  EACH(START)
  for (int r = 0; r < ROUNDS; r++) { EACH(STEP) }
  EACH(FINISH)
  return 64.0 * CHAINS * ROUNDS;
}
#elif defined(__AVX2__)
static const char *int8_name = "vpmaddubsw + vpmaddwd + vpaddd ymm";
static double int8_macs(void) {
  __m256i x = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1), pairs;
#define START(c) __m256i a##c = _mm256_setzero_si256();
#define STEP(c)                                         \
  pairs = _mm256_maddubs_epi16(x, x);                   \
  __asm__ volatile("" : "+x"(pairs));                   \
  a##c = _mm256_add_epi32(a##c, _mm256_madd_epi16(pairs, ones));
#define FINISH(c) sink ^= _mm256_extract_epi32(a##c, 0);
  EACH(START)
  for (int r = 0; r < ROUNDS; r++) { EACH(STEP) }
  EACH(FINISH)
  return 32.0 * CHAINS * ROUNDS;
}
#else
static const char *int8_name = NULL; /* no figure on this architecture */
static double int8_macs(void) { return 0; }
#endif
#undef START
#undef STEP
#undef FINISH

#if defined(__AVX512F__)
#define LANES 16
typedef __m512 Floats;
#define SPLAT _mm512_set1_ps
#define FMA _mm512_fmadd_ps
#elif defined(__FMA__)
#define LANES 8
typedef __m256 Floats;
#define SPLAT _mm256_set1_ps
#define FMA _mm256_fmadd_ps
#endif

#ifdef LANES
static double fma_macs(void) {
  Floats x = SPLAT(0.999f), y = SPLAT(1e-3f);
#define START(c) Floats a##c = x;
#define STEP(c) a##c = FMA(a##c, x, y); __asm__ volatile("" : "+v"(a##c));
#define FINISH(c) sink ^= (long long)a##c[0];
  EACH(START)
  for (int r = 0; r < ROUNDS; r++) { EACH(STEP) }
  EACH(FINISH)
  return (double)LANES * CHAINS * ROUNDS;
}
#else
static double fma_macs(void) { return 0; }
#endif

/* Best of as many rounds as the time allows, each thread by itself: a peak is what the hardware can do, and
   registers are not shared. */
static double peak_of(double (*macs)(void)) {
  double best = 0, until = now() + budget_s / 2, end;
  do {
    double start = now(), done = macs();
    end = now();
    double rate = done / (end - start) / 1e9;
    if (rate > best) best = rate;
  } while (end < until);
  return best;
}

/* ------------------------------------------------------------------ threads and commands */

static void work(int thread, Job what) {
  barrier(); /* everybody is awake */
  if (what == TOUCH) { /* pages come from the memory of the thread that will read them */
    size_t first, last;
    share(thread, &first, &last);
    memset(buffer + first, thread + 1, last - first);
  } else if (what == READ) {
    for (int v = 0; v < VARIANTS; v++) read_variant(thread, &variants[v]);
  } else if (what == PEAK) {
    peaks[thread].fma = peak_of(fma_macs);
    barrier(); /* the two kinds of instruction may run at different clocks */
    peaks[thread].int8 = peak_of(int8_macs);
  }
  barrier();
}

static void *helper(void *argument) {
  unsigned seen = 0;
  for (;;) {
    pthread_mutex_lock(&mutex);
    while (job_number == seen) pthread_cond_wait(&wake, &mutex);
    seen = job_number;
    Job what = job;
    pthread_mutex_unlock(&mutex);
    if (what == QUIT) return NULL;
    work((int)(intptr_t)argument, what);
  }
}

static void announce(Job what) {
  pthread_mutex_lock(&mutex);
  job = what;
  job_number++;
  pthread_cond_broadcast(&wake);
  pthread_mutex_unlock(&mutex);
}

static void run(Job what) {
  announce(what);
  work(0, what);
}

/* `allowed` is read before the first thread is pinned: a thread inherits the mask of its maker. */
static void pin(pthread_t thread, int index, const cpu_set_t *allowed) {
  cpu_set_t one;
  index %= CPU_COUNT(allowed);
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, allowed) || seen++ != index) continue;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(thread, sizeof one, &one);
    return;
  }
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* The buffer, at a huge page's border, touched by its readers. 0: no memory. */
static int allocate(size_t bytes, int *huge) {
  static char *mapping;
  if (mapping) munmap(mapping, buffer_bytes + HUGE);
  buffer_bytes = 0;
  mapping = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return mapping = NULL, 0;
  buffer = (char *)(((uintptr_t)mapping + HUGE - 1) / HUGE * HUGE);
  *huge = madvise(buffer, bytes, MADV_HUGEPAGE) == 0;
  buffer_bytes = bytes;
  run(TOUCH);
  return 1;
}

static void command_read(size_t bytes) {
  static int huge;
  bytes = bytes / (4 * LINE) * (4 * LINE);
  if (bytes == 0 || (bytes != buffer_bytes && !allocate(bytes, &huge))) {
    printf("{\"error\":\"no buffer of %zu bytes\"}\n", bytes);
    return;
  }
  run(READ);
  double highest = 0, best = 0;
  for (int v = 0; v < VARIANTS; v++) {
    qsort(variants[v].gb_s, (size_t)variants[v].passes, sizeof(double), ascending);
    double median = variants[v].gb_s[variants[v].passes / 2];
    if (median > highest) highest = median;
    if (variants[v].gb_s[variants[v].passes - 1] > best) best = variants[v].gb_s[variants[v].passes - 1];
  }
  printf("{\"bytes\":%zu,\"threads\":%d,\"huge_pages\":%s,\"gb_s\":%.3f,\"best_gb_s\":%.3f,\"variants\":{", bytes,
         num_threads, huge ? "true" : "false", highest, best);
  for (int v = 0; v < VARIANTS; v++)
    printf("%s\"%s\":{\"median\":%.3f,\"best\":%.3f,\"passes\":%d}", v ? "," : "", variants[v].name,
           variants[v].gb_s[variants[v].passes / 2], variants[v].gb_s[variants[v].passes - 1], variants[v].passes);
  printf("}}\n");
}

int main(int argc, char **argv) {
  num_threads = argc > 1 ? atoi(argv[1]) : 1;
  if (num_threads < 1 || num_threads > MAX_THREADS) {
    fprintf(stderr, "probe: THREADS must be 1 … %d\n", MAX_THREADS);
    return 2;
  }
  setvbuf(stdout, NULL, _IOLBF, 0);
  pthread_t helpers[MAX_THREADS];
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) return 1;
  pin(pthread_self(), 0, &allowed);
  for (int t = 1; t < num_threads; t++) {
    if (pthread_create(&helpers[t], NULL, helper, (void *)(intptr_t)t)) return 1;
    pin(helpers[t], t, &allowed);
  }
  char line[128];
  while (fgets(line, sizeof line, stdin)) {
    unsigned long long bytes;
    double budget_ms;
    if (sscanf(line, "read %llu %lf", &bytes, &budget_ms) == 2) {
      budget_s = budget_ms / 1e3;
      command_read((size_t)bytes);
    } else if (sscanf(line, "peak %lf", &budget_ms) == 1) {
      budget_s = budget_ms / 1e3;
      double fma = 0, int8 = 0;
      run(PEAK);
      for (int t = 0; t < num_threads; t++) fma += peaks[t].fma, int8 += peaks[t].int8;
      printf("{\"threads\":%d,\"int8_gmac_s\":%.2f,\"fma_gmac_s\":%.2f,\"int8\":\"%s\"}\n", num_threads, int8,
             fma, int8_name ? int8_name : "none");
    } else {
      printf("{\"error\":\"commands: read BYTES BUDGET_MS, peak BUDGET_MS\"}\n");
    }
  }
  announce(QUIT);
  for (int t = 1; t < num_threads; t++) pthread_join(helpers[t], NULL);
  return 0;
}
