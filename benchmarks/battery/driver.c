/* Runs tests of TestU01 on 32-bit words (host byte order) read from standard input.
 *
 *   driver small|crush|big [TEST ...]        SmallCrush, Crush, BigCrush: all of it, or the tests of these numbers
 *   driver rabbit LOG2_BITS [TEST ...]       Rabbit on 2^LOG2_BITS bits
 *
 * Writes one line for every p-value, with tabs between the fields: number of the test, its name, p-value, words it read,
 * seconds of CPU time (the last two are those of the whole test, on each of its lines).  TestU01's own text is dropped.
 * Exit status 2: wrong arguments; 3: the input ended too early.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <testu01/bbattery.h>
#include <testu01/swrite.h>
#include <testu01/unif01.h>
#include <time.h>
#include <unistd.h>

enum { CAPACITY = 1 << 16, MOST_TESTS = 200 };

static uint32_t buffer[CAPACITY];
static size_t filled, position;
static unsigned long long words_read;

static unsigned int next_word(void) {
    if (position == filled) {
        filled = fread(buffer, sizeof buffer[0], CAPACITY, stdin);
        position = 0;
        if (filled == 0) {
            fprintf(stderr, "the stream ended after %llu words\n", words_read);
            exit(3);
        }
    }
    words_read++;
    return buffer[position++];
}

static void run_test(unif01_Gen *words, const char *suite, double bits, int test, FILE *report) {
    static int times[MOST_TESTS + 1];
    unsigned long long before = words_read;
    clock_t begin = clock();
    times[test] = 1;
    if (strcmp(suite, "small") == 0)
        bbattery_RepeatSmallCrush(words, times);
    else if (strcmp(suite, "crush") == 0)
        bbattery_RepeatCrush(words, times);
    else if (strcmp(suite, "big") == 0)
        bbattery_RepeatBigCrush(words, times);
    else
        bbattery_RepeatRabbit(words, bits, times);
    times[test] = 0;
    for (int i = 0; i < bbattery_NTests; i++)
        fprintf(report, "%d\t%s\t%.17g\t%llu\t%.3f\n", test, bbattery_TestNames[i], bbattery_pVal[i],
                words_read - before, (double)(clock() - begin) / CLOCKS_PER_SEC);
    fflush(report);
}

int main(int argc, char **argv) {
    const char *names[] = {"small", "crush", "big", "rabbit"};
    const int sizes[] = {10, 96, 106, 26};
    int suite = 0;
    while (suite < 4 && (argc < 2 || strcmp(argv[1], names[suite]) != 0))
        suite++;
    int first = suite == 3 ? 3 : 2;
    if (suite == 4 || argc < first) {
        fprintf(stderr, "usage: driver small|crush|big [TEST ...] or driver rabbit LOG2_BITS [TEST ...]\n");
        return 2;
    }
    for (int i = first; i < argc; i++)
        if (atoi(argv[i]) < 1 || atoi(argv[i]) > sizes[suite]) {
            fprintf(stderr, "%s is not one of the tests 1 to %d\n", argv[i], sizes[suite]);
            return 2;
        }
    FILE *report = fdopen(dup(STDOUT_FILENO), "w");
    if (report == NULL || freopen("/dev/null", "w", stdout) == NULL) {
        perror("driver");
        return 1;
    }
    unif01_Gen *words = unif01_CreateExternGenBits("words of standard input", next_word);
    swrite_Basic = FALSE;
    double bits = suite == 3 ? ldexp(1.0, atoi(argv[2])) : 0.0;
    int count = argc > first ? argc - first : sizes[suite];
    for (int i = 0; i < count; i++)
        run_test(words, names[suite], bits, argc > first ? atoi(argv[first + i]) : i + 1, report);
    unif01_DeleteExternGenBits(words);
    return fclose(report) == 0 ? 0 : 1;
}
