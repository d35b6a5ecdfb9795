package org.qwtv2.edge.demo.core;

import java.util.Locale;

/** Why a benchmark job gave no result, or not all of it; {@code result.json} holds the lower-case name. */
public enum Failure {
    BAD_JOB,
    MISSING_FILE,
    HASH_MISMATCH,
    UNSUPPORTED_RUNTIME,
    WRONG_SHAPE,
    LOAD_FAILED,
    RUN_FAILED,
    OUT_OF_MEMORY,
    INTERRUPTED;

    public String code() {
        return name().toLowerCase(Locale.ROOT);
    }
}
