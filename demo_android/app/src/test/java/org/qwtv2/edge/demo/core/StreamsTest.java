package org.qwtv2.edge.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.fail;

import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

public class StreamsTest {
    @Rule
    public final TemporaryFolder folder = new TemporaryFolder();

    private File file() {
        return new File(folder.getRoot(), "x");
    }

    @Test
    public void whatWasWrittenIsHashed() throws IOException {
        byte[] data = new byte[200_000];
        data[150_000] = 1;
        assertEquals(Streams.sha256(data), Streams.writeAtomic(file(), new ByteArrayInputStream(data)));
        assertArrayEquals(data, Streams.readFile(file()));
    }

    @Test
    public void aFailureLeavesTheOldFileAndNothingElse() throws IOException {
        Streams.writeAtomic(file(), new byte[] {1});
        try {
            Streams.writeAtomic(file(), new InputStream() {
                @Override
                public int read() throws IOException {
                    throw new IOException("the cable came loose");
                }
            });
            fail("it was written");
        } catch (IOException error) {
            assertEquals("the cable came loose", error.getMessage());
        }
        assertArrayEquals(new byte[] {1}, Streams.readFile(file()));
        assertArrayEquals(new String[] {"x"}, folder.getRoot().list());
    }

    @Test
    public void twoWritersDoNotShareATemporaryFile() throws IOException {
        Streams.writeAtomic(file(), new InputStream() {
            private boolean done;

            @Override
            public int read() throws IOException {
                if (done) {
                    return -1;
                }
                Streams.writeAtomic(file(), new byte[] {2}); // the other one starts later and ends first
                done = true;
                return 1;
            }
        });
        assertArrayEquals(new byte[] {1}, Streams.readFile(file()));
        assertArrayEquals(new String[] {"x"}, folder.getRoot().list());
    }
}
