package org.qwtv2.edge.demo.core;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.StandardCopyOption;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;

/** Whole files. */
public final class Streams {
    private static final int PIECE = 1 << 16;

    private Streams() {}

    /** Everything up to the end of a stream, which stays open. */
    public static byte[] readAll(InputStream stream) throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        byte[] piece = new byte[PIECE];
        for (int n = stream.read(piece); n >= 0; n = stream.read(piece)) {
            out.write(piece, 0, n);
        }
        return out.toByteArray();
    }

    /** The content of a file. */
    public static byte[] readFile(File file) throws IOException {
        return Files.readAllBytes(file.toPath());
    }

    /** {@link #writeAtomic(File, InputStream)} for bytes. */
    public static void writeAtomic(File file, byte[] data) throws IOException {
        writeAtomic(file, new ByteArrayInputStream(data));
    }

    /**
     * Writes what a stream holds whole or not at all: under a temporary name of its own first, forced to the disk, then renamed.
     *
     * @return the SHA-256 of what was written.
     */
    public static String writeAtomic(File file, InputStream content) throws IOException {
        MessageDigest digest = sha256();
        File temporary = File.createTempFile("part", null, file.getParentFile());
        try {
            try (FileOutputStream out = new FileOutputStream(temporary)) {
                byte[] piece = new byte[PIECE];
                for (int n = content.read(piece); n >= 0; n = content.read(piece)) {
                    digest.update(piece, 0, n);
                    out.write(piece, 0, n);
                }
                out.getFD().sync();
            }
            Files.move(temporary.toPath(), file.toPath(), StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
        } finally {
            temporary.delete(); // nothing is there under this name once it has moved
        }
        return hexadecimal(digest.digest());
    }

    /** SHA-256 in lower-case hexadecimal digits. */
    public static String sha256(byte[] data) {
        return hexadecimal(sha256().digest(data));
    }

    private static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException error) {
            throw new AssertionError(error); // every Java and every Android has it
        }
    }

    private static String hexadecimal(byte[] data) {
        StringBuilder text = new StringBuilder();
        for (byte b : data) {
            text.append(Character.forDigit((b >> 4) & 15, 16)).append(Character.forDigit(b & 15, 16));
        }
        return text.toString();
    }
}
