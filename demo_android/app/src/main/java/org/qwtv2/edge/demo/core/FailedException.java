package org.qwtv2.edge.demo.core;

/** A failure with its kind and, for people, its reason. */
public final class FailedException extends Exception {
    public final Failure failure;

    public FailedException(Failure failure, String message) {
        this(failure, message, null);
    }

    public FailedException(Failure failure, String message, Throwable cause) {
        super(message, cause);
        this.failure = failure;
    }
}
